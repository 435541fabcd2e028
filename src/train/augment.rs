//! Rows changed at random while they train, so that a network cannot learn them by heart.

use serde::Deserialize;

use super::error::{Error, Result};
use super::random::Random;

/// How rows are changed in each epoch anew; all but `noise` are of images `[channels, height, width]`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Augment {
    /// Moved by at most this many pixels along both axes.
    #[serde(default)]
    pub shift: usize,
    /// Mirrored left to right, half of them.
    #[serde(default)]
    pub flip: bool,
    /// Turned by at most this many degrees to either side.
    #[serde(default)]
    pub rotate: f64,
    /// Normal noise of this standard deviation, in prepared units; of tables too, where it is known as jitter.
    #[serde(default, alias = "jitter")]
    pub noise: f32,
    /// A square of this many pixels made empty.
    #[serde(default)]
    pub cutout: usize,
}

/// An [`Augment`] for rows of one shape, with memory that is kept between batches.
#[derive(Debug)]
pub struct Augmenting {
    how: Augment,
    /// Height and width, of images.
    plane: Option<[usize; 2]>,
    size: usize,
    /// What stands where an image has nothing.
    empty: f32,
    before: Vec<f32>,
}

impl Augmenting {
    /// For rows of `shape`.
    ///
    /// # Errors
    /// The key that these rows cannot be changed by.
    pub fn new(how: Augment, shape: &[usize], empty: f32) -> Result<Self> {
        let plane = if let &[_, height, width] = shape { Some([height, width]) } else { None };
        let of_images = [("shift", how.shift > 0), ("flip", how.flip), ("rotate", how.rotate != 0.0), ("cutout", how.cutout > 0)];
        if let (None, Some((key, _))) = (plane, of_images.iter().find(|(_, set)| *set)) {
            return Err(Error(format!("`train.augment.{key}` is for images [channels, height, width]; a row has shape {shape:?}")));
        }
        if !(how.rotate.is_finite() && how.rotate >= 0.0 && how.noise.is_finite() && how.noise >= 0.0) {
            return Err("`train.augment.rotate` or `train.augment.noise` is negative".into());
        }
        Ok(Self { how, plane, size: shape.iter().product(), empty, before: Vec::new() })
    }

    /// Changes the rows of a batch.
    pub fn apply(&mut self, x: &mut [f32], random: &mut Random) {
        let Self { how, plane, size, empty, before } = self;
        if let Some([height, width]) = *plane {
            for row in x.chunks_exact_mut(*size) {
                if how.flip && random.bits() & 1 == 1 {
                    row.chunks_exact_mut(width).for_each(<[f32]>::reverse);
                }
                if how.shift > 0 {
                    let mut by = || random.below(2 * how.shift + 1) as isize - how.shift as isize;
                    let (down, right) = (by(), by());
                    row.chunks_exact_mut(height * width).for_each(|plane| shift(plane, width, (down, right), *empty, before));
                }
                if how.rotate > 0.0 {
                    let angle = (how.rotate * (2.0 * random.uniform() - 1.0)).to_radians();
                    row.chunks_exact_mut(height * width).for_each(|plane| rotate(plane, [height, width], angle, *empty, before));
                }
                if how.cutout > 0 {
                    let (top, left) = (random.below(height), random.below(width));
                    for plane in row.chunks_exact_mut(height * width) {
                        for line in plane.chunks_exact_mut(width).skip(top).take(how.cutout) {
                            line.iter_mut().skip(left).take(how.cutout).for_each(|v| *v = *empty);
                        }
                    }
                }
            }
        }
        if how.noise > 0.0 {
            x.iter_mut().for_each(|v| *v += how.noise * random.normal() as f32);
        }
    }
}

fn copy_of<'b>(plane: &[f32], before: &'b mut Vec<f32>) -> &'b [f32] {
    before.clear();
    before.extend_from_slice(plane);
    before
}

fn shift(plane: &mut [f32], width: usize, (down, right): (isize, isize), empty: f32, before: &mut Vec<f32>) {
    let old = copy_of(plane, before);
    for (i, to) in plane.iter_mut().enumerate() {
        let (row, column) = ((i / width) as isize - down, (i % width) as isize - right);
        let inside = row >= 0 && column >= 0 && (column as usize) < width;
        let from = if inside { old.get(row as usize * width + column as usize) } else { None };
        *to = from.copied().unwrap_or(empty);
    }
}

/// Turns about the middle; a pixel is made of the four that it comes from, in proportion.
fn rotate(plane: &mut [f32], [height, width]: [usize; 2], angle: f64, empty: f32, before: &mut Vec<f32>) {
    let old = copy_of(plane, before);
    let (sin, cos) = angle.sin_cos();
    let (middle_y, middle_x) = ((height - 1) as f64 / 2.0, (width - 1) as f64 / 2.0);
    let at = |y: i64, x: i64| {
        let inside = (0..height as i64).contains(&y) && (0..width as i64).contains(&x);
        if inside { old[y as usize * width + x as usize] } else { empty }
    };
    for (i, to) in plane.iter_mut().enumerate() {
        let (y, x) = ((i / width) as f64 - middle_y, (i % width) as f64 - middle_x);
        let (from_y, from_x) = (cos * y - sin * x + middle_y, sin * y + cos * x + middle_x);
        let (top, left) = (from_y.floor(), from_x.floor());
        let (down, right) = ((from_y - top) as f32, (from_x - left) as f32);
        let (top, left) = (top as i64, left as i64);
        let upper = at(top, left) * (1.0 - right) + at(top, left + 1) * right;
        let lower = at(top + 1, left) * (1.0 - right) + at(top + 1, left + 1) * right;
        *to = upper * (1.0 - down) + lower * down;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(how: Augment, shape: &[usize], rows: usize, value: f32) -> Vec<f32> {
        let mut x = vec![value; rows * shape.iter().product::<usize>()];
        Augmenting::new(how, shape, 0.0).unwrap().apply(&mut x, &mut Random::new(3, 0));
        x
    }

    #[test]
    fn images_move_and_lose_parts() {
        let mut plane = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        shift(&mut plane, 3, (1, -1), 9.0, &mut Vec::new());
        assert_eq!(plane, [9.0, 9.0, 9.0, 2.0, 3.0, 9.0]);
        let images = changed(Augment { cutout: 2, ..Augment::default() }, &[1, 4, 4], 2, 1.0);
        let gone: Vec<usize> = images.chunks(16).map(|image| image.iter().filter(|&&v| v == 0.0).count()).collect();
        assert!(gone.iter().all(|n| (1..=4).contains(n)), "{gone:?}");
        assert!(changed(Augment { noise: 0.5, ..Augment::default() }, &[8], 1, 0.0).iter().all(|&v| v != 0.0));
    }

    #[test]
    fn images_turn_about_their_middle() {
        let mut plane = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0];
        rotate(&mut plane, [3, 3], std::f64::consts::FRAC_PI_2, 0.0, &mut Vec::new());
        let want = [7.0, 4.0, 1.0, 8.0, 5.0, 2.0, 9.0, 6.0, 3.0];
        assert!(plane.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-5), "{plane:?}");
        let turned = changed(Augment { rotate: 30.0, ..Augment::default() }, &[1, 5, 5], 2, 1.0);
        assert_eq!((turned[12], turned[37]), (1.0, 1.0), "the middle stays");
        assert!(turned[0] < 1.0 && turned[0] != turned[25], "{turned:?}");
    }

    #[test]
    fn what_cannot_be_done_to_rows_is_refused() {
        let refused = |how, shape: &[usize]| Augmenting::new(how, shape, 0.0).unwrap_err().0;
        assert!(refused(Augment { rotate: 5.0, ..Augment::default() }, &[8]).contains("`train.augment.rotate`"));
        assert!(refused(Augment { flip: true, ..Augment::default() }, &[2, 8]).contains("`train.augment.flip`"));
        assert!(refused(Augment { rotate: -5.0, ..Augment::default() }, &[1, 2, 8]).contains("negative"));
    }
}
