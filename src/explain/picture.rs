//! Heat maps: contributions of an image's pixels as a picture, red for what speaks for the answer, blue for what speaks against it.

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

use crate::error::Error;

/// Small images are enlarged to about this many pixels, for people to look at.
const SIDE: usize = 224;

/// Where height, width and channels of an image are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plane {
    height: usize,
    width: usize,
    channels: usize,
    channels_last: bool,
}

impl Plane {
    /// The image that a row of this shape is, if it is one: three dimensions, of which the first or last is of 1, 3 or 4 channels.
    pub(super) fn of(shape: &[usize]) -> Option<Self> {
        let plane = |height, width, channels, channels_last| Some(Self { height, width, channels, channels_last });
        match *shape {
            [c @ (1 | 3 | 4), h, w] => plane(h, w, c, false),
            [h, w, c @ (1 | 3 | 4)] => plane(h, w, c, true),
            _ => None,
        }
    }

    pub(super) fn is_channel(self, axis: usize) -> bool {
        axis == if self.channels_last { 2 } else { 0 }
    }

    /// The contribution of a pixel: of all its channels together.
    fn pixel(self, values: &[f64], y: usize, x: usize) -> f64 {
        let at = |channel: usize| match self.channels_last {
            true => (y * self.width + x) * self.channels + channel,
            false => (channel * self.height + y) * self.width + x,
        };
        (0..self.channels).map(|channel| values[at(channel)]).sum()
    }
}

/// A PNG picture of the contributions of an input whose rows have this shape; `None` if they are no images.
///
/// # Errors
/// If the picture cannot be made.
pub fn heat_map(values: &[f64], shape: &[usize]) -> Result<Option<Vec<u8>>, Error> {
    let Some(plane) = Plane::of(shape) else { return Ok(None) };
    let scale = (SIDE / plane.height.max(plane.width).max(1)).max(1);
    let pixels: Vec<f64> = (0..plane.height * plane.width).map(|at| plane.pixel(values, at / plane.width, at % plane.width)).collect();
    let most = pixels.iter().fold(0.0_f64, |most, v| most.max(v.abs()));
    let (width, height) = (plane.width * scale, plane.height * scale);
    let mut bytes = Vec::with_capacity(3 * width * height);
    for y in 0..height {
        for x in 0..width {
            bytes.extend(colour(pixels[y / scale * plane.width + x / scale], most));
        }
    }
    let size = |n: usize| u32::try_from(n).map_err(|_| Error::invalid("the image is too large for a heat map"));
    let mut png = Vec::new();
    PngEncoder::new(&mut png)
        .write_image(&bytes, size(width)?, size(height)?, ExtendedColorType::Rgb8)
        .map_err(|error| Error::internal("the heat map could not be made", error))?;
    Ok(Some(png))
}

/// From blue over white to red.
fn colour(value: f64, most: f64) -> [u8; 3] {
    let share = if most > 0.0 { value / most } else { 0.0 };
    let faded = (255.0 * (1.0 - share.abs().min(1.0))).round() as u8;
    if share >= 0.0 { [255, faded, faded] } else { [faded, faded, 255] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heat_map_shows_signs_and_sizes() {
        let png = heat_map(&[1.0, -0.5, 0.0, 0.25], &[1, 2, 2]).unwrap().unwrap();
        let picture = image::load_from_memory(&png).unwrap().to_rgb8();
        assert_eq!(picture.dimensions(), (224, 224));
        assert_eq!(picture.get_pixel(0, 0).0, [255, 0, 0]);
        assert_eq!(picture.get_pixel(223, 0).0, [128, 128, 255]);
        assert_eq!(picture.get_pixel(0, 223).0, [255, 255, 255]);
        assert_eq!(picture.get_pixel(112, 112).0, [255, 191, 191]);
        let channels = heat_map(&[0.5, 0.5, 0.0, 0.0, 0.0, 1.0], &[2, 1, 3]).unwrap().unwrap();
        assert_eq!(image::load_from_memory(&channels).unwrap().to_rgb8().get_pixel(0, 0).0, [255, 0, 0]);
        assert_eq!(heat_map(&[0.0; 8], &[8]).unwrap(), None);
        assert!(heat_map(&[0.0; 4], &[1, 2, 2]).unwrap().is_some());
    }
}
