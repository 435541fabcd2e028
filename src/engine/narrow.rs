//! Element types of 2 to 8 bits: small floats and small integers.
//!
//! Each element lies in a byte of its own in memory; files pack the types below 8 bits, which is the business of
//! the readers. The small floats are those of the OCP specifications (OFP8 and MX v1.0) and of
//! <https://arxiv.org/abs/2206.02915> (the `Fnuz` kinds: one NaN at the place of −0, no infinity).

use bytemuck::{Pod, Zeroable};

use super::dtype::Element;

/// What the types of this file have in common.
pub trait Narrow: Element + Copy {
    /// The value, exactly.
    fn widen(self) -> f64;
    /// The nearest value: floats round ties to even and saturate, integers truncate and wrap.
    fn narrow(value: f64) -> Self;
    /// The bits as a file holds them, in the low end of the byte.
    fn to_raw(self) -> u8;
    /// The value with these bits in the low end of the byte.
    fn from_raw(bits: u8) -> Self;
}

/// What a float keeps of NaN, infinity and negative zero.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Specials {
    /// Infinities and NaN in the highest exponent, as IEEE 754 has them.
    Ieee,
    /// No infinity; all bits but the sign set are NaN.
    Finite,
    /// No infinity, no negative zero; the bits of −0 are NaN.
    Unsigned0,
    /// Numbers only: NaN has no bits.
    NoNan,
}

/// The layout of a small float with a sign bit.
struct Layout {
    exponent_bits: u32,
    mantissa_bits: u32,
    bias: i32,
    specials: Specials,
}

impl Layout {
    const fn width(&self) -> u32 {
        1 + self.exponent_bits + self.mantissa_bits
    }

    const fn sign(&self) -> u8 {
        1 << (self.width() - 1)
    }

    /// The bits of the greatest number.
    const fn greatest(&self) -> u8 {
        let all = self.sign() - 1;
        match self.specials {
            Specials::Ieee => (all >> self.mantissa_bits << self.mantissa_bits) - 1,
            Specials::Finite => all - 1,
            Specials::Unsigned0 | Specials::NoNan => all,
        }
    }

    fn nan(&self, negative: bool) -> u8 {
        let sign = if negative { self.sign() } else { 0 };
        match self.specials {
            // The quiet one: the highest bit of the mantissa.
            Specials::Ieee => sign | (self.greatest() + 1) | (1 << (self.mantissa_bits - 1)),
            Specials::Finite => sign | (self.sign() - 1),
            Specials::Unsigned0 => self.sign(),
            Specials::NoNan => 0,
        }
    }

    fn decode(&self, bits: u8) -> f32 {
        let magnitude = bits & (self.sign() - 1);
        let negative = bits & self.sign() != 0;
        if self.specials == Specials::Unsigned0 && bits == self.sign() {
            return f32::NAN;
        }
        let value = if magnitude > self.greatest() {
            let infinite = self.specials == Specials::Ieee && magnitude == self.greatest() + 1;
            if infinite { f32::INFINITY } else { f32::NAN }
        } else {
            let exponent = i32::from(magnitude >> self.mantissa_bits);
            let mantissa = f32::from(magnitude & ((1 << self.mantissa_bits) - 1));
            let one = (1_u32 << self.mantissa_bits) as f32;
            let significand = if exponent == 0 { mantissa } else { one + mantissa };
            significand * 2.0_f32.powi(exponent.max(1) - self.bias - self.mantissa_bits as i32)
        };
        if negative { -value } else { value }
    }

    /// The nearest number, ties to even. Beyond the greatest: that with its sign if `saturate` holds or the type has
    /// nothing else, otherwise infinity or NaN.
    fn encode(&self, value: f64, saturate: bool) -> u8 {
        let negative = value.is_sign_negative();
        if value.is_nan() {
            return self.nan(negative);
        }
        let sign = if negative { self.sign() } else { 0 };
        let lowest = 1 - self.bias;
        let magnitude = value.abs();
        // The exponent of the unit in the last place: f64's own, no lower than that of the subnormal numbers.
        let exponent = (((magnitude.to_bits() >> 52) as i32) - 1023).max(lowest);
        let unit = exponent - self.mantissa_bits as i32;
        let quotient = if magnitude.is_finite() { (magnitude * 2.0_f64.powi(-unit)).round_ties_even() } else { f64::INFINITY };
        // Rounding up to the next power of two carries into the exponent by plain addition.
        let bits = if quotient.is_finite() { (i64::from(exponent - lowest) << self.mantissa_bits) + quotient as i64 } else { i64::MAX };
        if bits > i64::from(self.greatest()) {
            let none = self.specials == Specials::NoNan;
            return match self.specials {
                _ if saturate || none => sign | self.greatest(),
                Specials::Ieee => sign | (self.greatest() + 1),
                _ => self.nan(negative),
            };
        }
        match bits {
            0 if self.specials == Specials::Unsigned0 => 0,
            bits => sign | bits as u8,
        }
    }
}

macro_rules! small_floats {
    ($($(#[$doc:meta])* $name:ident: $layout:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Zeroable, Pod)]
        #[repr(transparent)]
        pub struct $name(u8);

        impl $name {
            const LAYOUT: Layout = $layout;

            /// The number with these bits, of which the highest ones that the type does not have are ignored.
            pub fn from_bits(bits: u8) -> Self {
                Self(bits & (u8::MAX >> (8 - Self::LAYOUT.width())))
            }

            /// The bits.
            pub fn to_bits(self) -> u8 {
                self.0
            }

            /// The nearest number, ties to even; beyond the range the greatest one if `saturate`, otherwise infinity or
            /// NaN if the type has it.
            pub fn from_f64(value: f64, saturate: bool) -> Self {
                Self(Self::LAYOUT.encode(value, saturate))
            }

            /// The number, exactly.
            pub fn to_f32(self) -> f32 {
                Self::LAYOUT.decode(self.0)
            }

            /// The greatest number.
            pub fn greatest() -> Self {
                Self(Self::LAYOUT.greatest())
            }
        }

        impl Narrow for $name {
            fn widen(self) -> f64 { f64::from(self.to_f32()) }
            fn narrow(value: f64) -> Self { Self::from_f64(value, true) }
            fn to_raw(self) -> u8 { self.0 }
            fn from_raw(bits: u8) -> Self { Self::from_bits(bits) }
        }
    )*};
}
small_floats! {
    /// 8 bits: 4 of exponent, 3 of mantissa; NaN, no infinity; up to 448.
    F8E4M3Fn: Layout { exponent_bits: 4, mantissa_bits: 3, bias: 7, specials: Specials::Finite };
    /// 8 bits: 4 of exponent, 3 of mantissa; one NaN, no infinity, no −0; up to 240.
    F8E4M3Fnuz: Layout { exponent_bits: 4, mantissa_bits: 3, bias: 8, specials: Specials::Unsigned0 };
    /// 8 bits: 5 of exponent, 2 of mantissa, as IEEE 754; up to 57344.
    F8E5M2: Layout { exponent_bits: 5, mantissa_bits: 2, bias: 15, specials: Specials::Ieee };
    /// 8 bits: 5 of exponent, 2 of mantissa; one NaN, no infinity, no −0; up to 57344.
    F8E5M2Fnuz: Layout { exponent_bits: 5, mantissa_bits: 2, bias: 16, specials: Specials::Unsigned0 };
    /// 4 bits: 2 of exponent, 1 of mantissa; numbers only, up to 6.
    F4E2M1: Layout { exponent_bits: 2, mantissa_bits: 1, bias: 1, specials: Specials::NoNan };
    /// 6 bits: 2 of exponent, 3 of mantissa; numbers only, up to 7.5.
    F6E2M3: Layout { exponent_bits: 2, mantissa_bits: 3, bias: 1, specials: Specials::NoNan };
    /// 6 bits: 3 of exponent, 2 of mantissa; numbers only, up to 28.
    F6E3M2: Layout { exponent_bits: 3, mantissa_bits: 2, bias: 3, specials: Specials::NoNan };
}

/// How a number that lies between two powers of two becomes one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerRounding {
    /// To the greater.
    Up,
    /// To the smaller.
    Down,
    /// To the nearer, ties to the greater.
    Nearest,
}

/// A power of two, the scale of a block in the MX formats: 2^(bits − 127); 255 is NaN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Zeroable, Pod)]
#[repr(transparent)]
pub struct F8E8M0(u8);

impl F8E8M0 {
    /// The number with these bits.
    pub fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// The bits.
    pub fn to_bits(self) -> u8 {
        self.0
    }

    /// The power of two for `value`, whose sign is ignored; NaN and infinities give NaN. Beyond 2^127 the greatest if
    /// `saturate`, otherwise NaN.
    pub fn from_f32(value: f32, saturate: bool, rounding: PowerRounding) -> Self {
        const NAN: u8 = 255;
        let bits = value.to_bits() & 0x7fff_ffff;
        let (exponent, fraction) = ((bits >> 23) as u8, bits & 0x7f_ffff);
        const HALF: u32 = 0x40_0000;
        let up = match rounding {
            PowerRounding::Up => fraction > 0,
            PowerRounding::Down => false,
            // A subnormal number that is exactly half stays: the reference has it so.
            PowerRounding::Nearest => fraction > HALF || (fraction == HALF && exponent > 0),
        };
        match exponent {
            NAN => Self(NAN),
            254 if up && saturate => Self(254),
            exponent => Self(exponent + u8::from(up)),
        }
    }

    /// The number, exactly.
    pub fn to_f32(self) -> f32 {
        match self.0 {
            255 => f32::NAN,
            bits => 2.0_f64.powi(i32::from(bits) - 127) as f32,
        }
    }
}

impl Narrow for F8E8M0 {
    fn widen(self) -> f64 {
        f64::from(self.to_f32())
    }

    fn narrow(value: f64) -> Self {
        Self::from_f32(value as f32, true, PowerRounding::Nearest)
    }

    fn to_raw(self) -> u8 {
        self.0
    }

    fn from_raw(bits: u8) -> Self {
        Self(bits)
    }
}

macro_rules! small_integers {
    ($($(#[$doc:meta])* $name:ident($store:ty): $bits:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Zeroable, Pod)]
        #[repr(transparent)]
        pub struct $name($store);

        impl $name {
            /// How many bits the type has.
            pub const BITS: u32 = $bits;
            /// The smallest value.
            pub const MIN: i64 = (<$store>::MIN >> (8 - $bits)) as i64;
            /// The greatest value.
            pub const MAX: i64 = (<$store>::MAX >> (8 - $bits)) as i64;

            /// The value modulo 2^bits.
            pub fn wrap(value: i64) -> Self {
                // Shifting up and down again extends the sign, if the type has one.
                Self(((value << (8 - $bits)) as $store) >> (8 - $bits))
            }

            /// The nearest value in the range.
            pub fn saturate(value: i64) -> Self {
                Self::wrap(value.clamp(Self::MIN, Self::MAX))
            }

            /// The value.
            pub fn get(self) -> i64 {
                i64::from(self.0)
            }
        }

        impl Narrow for $name {
            fn widen(self) -> f64 { f64::from(self.0) }
            fn narrow(value: f64) -> Self { Self::wrap(value as i64) }
            fn to_raw(self) -> u8 { self.0 as u8 & (u8::MAX >> (8 - $bits)) }
            fn from_raw(bits: u8) -> Self { Self::wrap(i64::from(bits)) }
        }
    )*};
}
small_integers! {
    /// A signed integer of 4 bits.
    I4(i8): 4;
    /// An unsigned integer of 4 bits.
    U4(u8): 4;
    /// A signed integer of 2 bits.
    I2(i8): 2;
    /// An unsigned integer of 2 bits.
    U2(u8): 2;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bits that the library ml_dtypes gives, which onnx's own reference uses.
    #[test]
    fn bits_are_those_of_the_standards() {
        let values = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e9, -0.0, -1e-9, -1.0, 3.0];
        let bits = |encode: &dyn Fn(f64) -> u8| values.map(encode);
        assert_eq!(bits(&|v| F8E4M3Fn::from_f64(v, false).to_bits()), [0x7f, 0x7f, 0xff, 0x7f, 0x80, 0x80, 0xb8, 0x44]);
        assert_eq!(bits(&|v| F8E4M3Fnuz::from_f64(v, false).to_bits()), [0x80, 0x80, 0x80, 0x80, 0, 0, 0xc0, 0x4c]);
        assert_eq!(bits(&|v| F8E5M2::from_f64(v, false).to_bits()), [0x7e, 0x7c, 0xfc, 0x7c, 0x80, 0x80, 0xbc, 0x42]);
        assert_eq!(bits(&|v| F8E5M2Fnuz::from_f64(v, false).to_bits()), [0x80, 0x80, 0x80, 0x80, 0, 0, 0xc0, 0x46]);
        assert_eq!(bits(&|v| F8E4M3Fn::from_f64(v, true).to_bits()), [0x7f, 0x7e, 0xfe, 0x7e, 0x80, 0x80, 0xb8, 0x44]);
        assert_eq!(bits(&|v| F8E5M2::from_f64(v, true).to_bits()), [0x7e, 0x7b, 0xfb, 0x7b, 0x80, 0x80, 0xbc, 0x42]);
        assert_eq!(bits(&|v| F4E2M1::from_f64(v, false).to_bits())[1..], [0x7, 0xf, 0x7, 0x8, 0x8, 0xa, 0x5]);
        assert_eq!(bits(&|v| F6E2M3::from_f64(v, false).to_bits())[1..], [0x1f, 0x3f, 0x1f, 0x20, 0x20, 0x28, 0x14]);
        assert_eq!(bits(&|v| F6E3M2::from_f64(v, false).to_bits())[1..], [0x1f, 0x3f, 0x1f, 0x20, 0x20, 0x2c, 0x12]);
    }

    #[test]
    fn every_number_survives_a_round_trip_and_ties_go_to_even() {
        macro_rules! check {
            ($($t:ty),*) => {$(
                let count = 1_u16 << <$t>::LAYOUT.width();
                for bits in (0..count).map(|bits| bits as u8) {
                    let value = <$t>::from_bits(bits).to_f32();
                    if value.is_nan() {
                        continue;
                    }
                    assert_eq!(<$t>::from_f64(f64::from(value), false).to_bits(), bits, "{value}");
                    let above = <$t>::from_bits(bits.wrapping_add(1)).to_f32();
                    if above > value && above.is_finite() && value >= 0.0 {
                        let middle = (f64::from(value) + f64::from(above)) / 2.0;
                        assert_eq!(<$t>::from_f64(middle, false).to_bits() & 1, 0, "between {value} and {above}");
                    }
                }
            )*};
        }
        check!(F8E4M3Fn, F8E4M3Fnuz, F8E5M2, F8E5M2Fnuz, F4E2M1, F6E2M3, F6E3M2);
        assert_eq!([F8E4M3Fn::greatest().to_f32(), F8E4M3Fnuz::greatest().to_f32(), F8E5M2::greatest().to_f32()], [448.0, 240.0, 57344.0]);
        assert_eq!([F4E2M1::greatest().to_f32(), F6E2M3::greatest().to_f32(), F6E3M2::greatest().to_f32()], [6.0, 7.5, 28.0]);
    }

    #[test]
    fn powers_of_two() {
        use PowerRounding::{Down, Nearest, Up};
        let bits = |value, rounding| F8E8M0::from_f32(value, true, rounding).to_bits();
        assert_eq!([bits(1.0, Up), bits(1.5, Up), bits(1.5, Down), bits(1.5, Nearest), bits(1.25, Nearest)], [127, 128, 127, 128, 127]);
        assert_eq!([bits(0.0, Up), bits(f32::NAN, Up), bits(f32::MAX, Up)], [0, 255, 254]);
        assert_eq!(F8E8M0::from_f32(f32::MAX, false, Up).to_bits(), 255);
        assert_eq!([F8E8M0::from_bits(0).to_f32(), F8E8M0::from_bits(128).to_f32()], [2.0_f32.powi(-127), 2.0]);
        assert!(F8E8M0::from_bits(255).to_f32().is_nan());
    }

    #[test]
    fn small_integers_wrap_or_saturate() {
        assert_eq!([300, -9, 7, 8, 15].map(|v| I4::wrap(v).get()), [-4, 7, 7, -8, -1]);
        assert_eq!([300, -9, 7, 8, 16].map(|v| U4::wrap(v).get()), [12, 7, 7, 8, 0]);
        assert_eq!([300, -9, 1, 2].map(|v| I2::wrap(v).get()), [0, -1, 1, -2]);
        assert_eq!([300, -9].map(|v| U2::saturate(v).get()), [3, 0]);
        assert_eq!([300, -9].map(|v| I4::saturate(v).get()), [7, -8]);
    }
}
