//! ImageDecoder: the pixels of an encoded picture.
//!
//! A stream that is broken, or in no format that the standard lists, gives an empty picture, as the standard says; one in a
//! listed format that is not decoded is an error that names it.

mod jpeg;
mod jpeg_entropy;
mod jpeg_idct;

use std::io::Cursor;

use hayro_jpeg2000::{ColorSpace, DecodeSettings};
use image::{DynamicImage, ImageFormat, ImageReader, Limits};
use jpeg::Fault;

use super::ANY;
use super::axes::require;
use crate::engine::attrs::Attrs;
use crate::engine::dtype::DType;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::tensor::{Kind, Tensor, Value};

pub(crate) const DEFS: &[OpDef] =
    &[OpDef { name: "ImageDecoder", domain: "", opsets: 20..=ANY, types: &[DType::U8], build: image_decoder }];

/// Bytes that a decoded picture, and the memory to decode it, may take: a small stream may describe a huge picture.
const MOST_BYTES: usize = 1 << 29;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Rgb,
    Bgr,
    Grayscale,
}

#[derive(Debug)]
struct ImageDecoder {
    format: Format,
}

fn image_decoder(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let format = match attrs.string_or("pixel_format", "RGB")?.as_str() {
        "RGB" => Format::Rgb,
        "BGR" => Format::Bgr,
        "Grayscale" => Format::Grayscale,
        other => return Err(OpError::Attribute(format!("attribute `pixel_format` is `{other}`"))),
    };
    Ok(Box::new(ImageDecoder { format }))
}

/// Rows of pixels of one channel, or of red, green and blue.
#[derive(Debug)]
pub struct Picture {
    /// Pixels of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// 1 or 3.
    pub channels: usize,
    /// `[height, width, channels]`.
    pub pixels: Vec<u8>,
}

/// A picture of any format of the ImageDecoder operator.
///
/// # Errors
/// That it is broken, too large, or of a variant that is not read.
pub fn decode_picture(data: &[u8]) -> Result<Picture, &'static str> {
    decode(data, MOST_BYTES).map_err(|fault| match fault {
        Fault::Broken => "it is no picture, or a broken one",
        Fault::TooLarge => "the picture takes more than 512 MiB",
        Fault::Unsupported(what) => what,
    })
}

/// The picture, decoded in at most `limit` bytes.
fn decode(data: &[u8], limit: usize) -> Result<Picture, Fault> {
    match data {
        [0xff, 0xd8, ..] => jpeg::decode(data, limit),
        [0, 0, 0, 12, b'j', b'P', b' ', b' ', ..] | [0xff, 0x4f, 0xff, 0x51, ..] => jpeg2000(data, limit),
        _ => match image::guess_format(data) {
            Ok(format @ (ImageFormat::Bmp | ImageFormat::Png | ImageFormat::Tiff | ImageFormat::WebP | ImageFormat::Pnm)) => other(data, format, limit),
            _ => Err(Fault::Broken),
        },
    }
}

fn other(data: &[u8], format: ImageFormat, limit: usize) -> Result<Picture, Fault> {
    let mut reader = ImageReader::with_format(Cursor::new(data), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(limit as u64);
    reader.limits(limits);
    let image = reader.decode().map_err(|error| match error {
        image::ImageError::Limits(_) => Fault::TooLarge,
        image::ImageError::Unsupported(_) => Fault::Unsupported("a picture of this variant of its format"),
        _ => Fault::Broken,
    })?;
    let (width, height) = (image.width() as usize, image.height() as usize);
    let gray = matches!(image, DynamicImage::ImageLuma8(_) | DynamicImage::ImageLumaA8(_) | DynamicImage::ImageLuma16(_) | DynamicImage::ImageLumaA16(_));
    let (channels, pixels) = if gray { (1, image.into_luma8().into_raw()) } else { (3, image.into_rgb8().into_raw()) };
    Ok(Picture { width, height, channels, pixels })
}

fn jpeg2000(data: &[u8], limit: usize) -> Result<Picture, Fault> {
    let image = hayro_jpeg2000::Image::new(data, &DecodeSettings::default()).map_err(|_| Fault::Broken)?;
    let colours = match image.color_space() {
        ColorSpace::Gray => 1,
        ColorSpace::RGB => 3,
        _ => return Err(Fault::Unsupported("JPEG 2000 in other colours than gray or RGB")),
    };
    let (width, height) = (image.width() as usize, image.height() as usize);
    let all = colours + usize::from(image.has_alpha());
    // Coefficients are decoded as f32.
    match width.checked_mul(height).and_then(|n| n.checked_mul(all * size_of::<f32>())) {
        Some(bytes) if bytes <= limit => {}
        _ => return Err(Fault::TooLarge),
    }
    let mut pixels = image.decode().map_err(|_| Fault::Broken)?;
    if pixels.len() != width * height * all {
        return Err(Fault::Broken);
    }
    if all > colours {
        pixels = pixels.chunks_exact(all).flat_map(|pixel| &pixel[..colours]).copied().collect();
    }
    Ok(Picture { width, height, channels: colours, pixels })
}

impl Picture {
    /// The pixels as `format` has them.
    fn into_tensor(self, format: Format) -> Option<Tensor> {
        let Self { width, height, channels, mut pixels } = self;
        match (format, channels) {
            (Format::Rgb, 3) | (Format::Grayscale, 1) => {}
            (Format::Bgr, 3) => pixels.chunks_exact_mut(3).for_each(|pixel| pixel.swap(0, 2)),
            (Format::Grayscale, _) => pixels = pixels.chunks_exact(3).map(luminance).collect(),
            _ => pixels = pixels.iter().flat_map(|&gray| [gray; 3]).collect(),
        }
        Tensor::new(&[height, width, if format == Format::Grayscale { 1 } else { 3 }], pixels)
    }
}

/// The weights of ITU-R 601 in 16-bit fixed point.
fn luminance(pixel: &[u8]) -> u8 {
    let weighted: u32 = pixel.iter().zip([19_595, 38_470, 7_471]).map(|(&c, w)| u32::from(c) * w).sum();
    ((weighted + 0x8000) >> 16) as u8
}

impl Op for ImageDecoder {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 1)?;
        Ok(inputs[0].iter().cloned().collect())
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        match inputs.shape(0)? {
            [_] => Err(OpError::Unknown),
            shape => Err(OpError::shape(format!("an encoded picture is a vector of bytes, not of shape {shape:?}"))),
        }
    }

    fn run(&self, _: &Inputs<'_>, _: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        Err(OpError::Unknown)
    }

    fn run_dynamic(&self, inputs: &[Option<&Value>], ctx: &mut Context<'_>) -> Result<Vec<Value>, OpError> {
        let data = inputs.first().copied().flatten().and_then(Value::tensor).ok_or_else(|| OpError::missing_input(0))?;
        let channels = if self.format == Format::Grayscale { 1 } else { 3 };
        let limit = ctx.budget.min(MOST_BYTES);
        let picture = match decode(data.view().slice::<u8>()?, limit) {
            Ok(picture) => picture,
            Err(Fault::Broken) => Picture { width: 0, height: 0, channels, pixels: Vec::new() },
            Err(Fault::Unsupported(what)) => return Err(OpError::unsupported(format!("{what} is not decoded"))),
            Err(Fault::TooLarge) => return Err(OpError::value(format!("the picture takes more than {limit} bytes to decode"))),
        };
        let tensor = picture.into_tensor(self.format).ok_or_else(|| OpError::shape("pixels that do not fill the picture"))?;
        Ok(vec![Value::Tensor(tensor)])
    }
}

#[cfg(test)]
mod tests;
