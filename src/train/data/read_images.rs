//! Pictures in a folder for each class: `folder/cat/1.png`. A row is `[channels, height, width]` of 0 to 255.

use std::path::{Path, PathBuf};

use image::{DynamicImage, GrayImage, RgbImage, imageops::FilterType};

use super::source::{Reader, part_rows};
use super::{Column, Inputs};
use crate::engine::{Picture, decode_picture};
use crate::train::error::{Error, Result, in_file};

/// Endings of pictures.
const EXTENSIONS: &[&str] = &["png", "jpg", "jpeg", "bmp", "webp"];

/// A folder of folders.
#[derive(Debug)]
pub(super) struct Images {
    /// Files with their classes, in the order of their names.
    files: Vec<(PathBuf, String)>,
    /// Channels, height, width.
    shape: [usize; 3],
    resize: bool,
}

impl Images {
    /// All pictures of `folder`. Without a `size` (height, width), that of the first; the others must have it. Grey if the first is.
    ///
    /// # Errors
    /// If there is no picture, or the first cannot be read.
    pub(super) fn open(folder: &Path, size: Option<[usize; 2]>, channels: Option<usize>) -> Result<Self> {
        let mut files = Vec::new();
        for class in sorted(folder)?.into_iter().filter(|path| path.is_dir() && !hidden(path)) {
            let name = class.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let picture = |path: &PathBuf| {
                let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
                path.is_file() && !hidden(path) && EXTENSIONS.contains(&extension.as_str())
            };
            files.extend(sorted(&class)?.into_iter().filter(picture).map(|path| (path, name.clone())));
        }
        let Some((first, _)) = files.first() else {
            return Err(in_file(folder, format!("there is no picture in a folder for its class; known are {}", EXTENSIONS.join(", "))));
        };
        let picture = decode(first)?;
        let channels = channels.unwrap_or(if picture.color().has_color() { 3 } else { 1 });
        if channels != 1 && channels != 3 {
            return Err(Error(format!("`data.channels` is {channels}; 1 (grey) or 3 (red, green, blue) is wanted")));
        }
        let [height, width] = size.unwrap_or([picture.height() as usize, picture.width() as usize]);
        if height == 0 || width == 0 {
            return Err("`data.size` is 0".into());
        }
        Ok(Self { files, shape: [channels, height, width], resize: size.is_some() })
    }

    /// Appends the planes of a picture.
    fn read(&self, path: &Path, values: &mut Vec<f32>) -> Result<()> {
        let [channels, height, width] = self.shape;
        let mut picture = decode(path)?;
        let found = [picture.height() as usize, picture.width() as usize];
        if found != [height, width] {
            if !self.resize {
                let [high, wide] = found;
                return Err(in_file(
                    path,
                    format!("{high} × {wide} pixels where the first picture has {height} × {width}; `data.size` brings all to one size"),
                ));
            }
            picture = picture.resize_exact(width as u32, height as u32, FilterType::Triangle);
        }
        if channels == 1 {
            values.extend(picture.into_luma8().as_raw().iter().map(|&v| f32::from(v)));
        } else {
            let pixels = picture.into_rgb8();
            for channel in 0..channels {
                values.extend(pixels.as_raw().iter().skip(channel).step_by(channels).map(|&v| f32::from(v)));
            }
        }
        Ok(())
    }
}

impl Reader for Images {
    fn bytes(&self) -> usize {
        self.files.len() * self.shape.iter().product::<usize>() * size_of::<f32>()
    }

    fn parts(&self, f: &mut dyn FnMut(Inputs, Column) -> Result<()>) -> Result<()> {
        for files in self.files.chunks(part_rows(self.shape.iter().product())) {
            let mut values = Vec::new();
            files.iter().try_for_each(|(path, _)| self.read(path, &mut values))?;
            let classes = files.iter().map(|(_, class)| class.clone()).collect();
            f(Inputs::Array { name: "image".into(), shape: self.shape.to_vec(), values }, Column::Texts(classes))?;
        }
        Ok(())
    }
}

fn hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let said = |error: std::io::Error| in_file(folder, error);
    let mut paths =
        std::fs::read_dir(folder).map_err(said)?.map(|entry| entry.map(|e| e.path()).map_err(said)).collect::<Result<Vec<_>>>()?;
    paths.sort_unstable();
    Ok(paths)
}

fn decode(path: &Path) -> Result<DynamicImage> {
    let bytes = std::fs::read(path).map_err(|error| in_file(path, error))?;
    let Picture { width, height, channels, pixels } = decode_picture(&bytes).map_err(|error| in_file(path, error))?;
    let (width, height) = (width as u32, height as u32);
    let picture = match channels {
        1 => GrayImage::from_raw(width, height, pixels).map(DynamicImage::from),
        _ => RgbImage::from_raw(width, height, pixels).map(DynamicImage::from),
    };
    picture.ok_or_else(|| in_file(path, "it is a broken picture"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jpeg_and_others_are_read() {
        let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pictures");
        for (name, grey) in
            [("420.jpg", false), ("progressive.jpg", false), ("gray.jpg", true), ("lossless.png", false), ("lossless.bmp", false)]
        {
            let picture = decode(&pictures.join(name)).unwrap();
            assert_eq!((picture.width(), picture.height(), picture.color().has_color()), (21, 19, !grey), "{name}");
        }
    }
}
