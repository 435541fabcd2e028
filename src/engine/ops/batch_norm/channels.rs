//! Sums over channels and passes over planes, as training does them: on several threads, in an order that they do not change.

use super::Sizes;
use crate::engine::ops::scalar::Scalar;
use crate::engine::threads::Threads;

/// Partial sums side by side: element `i` of a plane is in sum `i % LANES`.
const LANES: usize = 16;

/// Operations for each element, memory counted by its time: what threads are asked for.
const COST: u64 = 4;

/// For each channel what `f` gives, which goes through the planes of the channel in their order.
fn each_channel<const N: usize>(sizes: Sizes, threads: &Threads, f: impl Fn(usize) -> [f64; N] + Sync + Send) -> Vec<[f64; N]> {
    let mut found = vec![[0.0; N]; sizes.channels];
    let part = sizes.channels.div_ceil(threads.parts(COST * (sizes.samples * sizes.channels * sizes.size) as u64)).max(1);
    let items: Vec<_> = found.chunks_mut(part).enumerate().collect();
    threads.for_each(items, |(number, found)| found.iter_mut().enumerate().for_each(|(i, found)| *found = f(number * part + i)));
    found
}

/// Sums over the elements of one plane of two tensors: of the first's, and of the products of both, the second's less `mean`.
fn plane<T: Scalar>(g: &[T], x: &[T], mean: T) -> [f64; 2] {
    let (mut plain, mut weighted) = ([T::zero(); LANES], [T::zero(); LANES]);
    let ((g, g_tail), (x, x_tail)) = (g.as_chunks::<LANES>(), x.as_chunks::<LANES>());
    for (g, x) in g.iter().zip(x) {
        for i in 0..LANES {
            plain[i] += g[i];
            weighted[i] += g[i] * (x[i] - mean);
        }
    }
    for (i, (&g, &x)) in g_tail.iter().zip(x_tail).enumerate() {
        plain[i] += g;
        weighted[i] += g * (x - mean);
    }
    [plain, weighted].map(|lanes| lanes.iter().map(|lane| lane.wide()).sum())
}

/// The same of one tensor: its elements, and the squares of their distances from `mean`.
fn squares<T: Scalar>(x: &[T], mean: T) -> [f64; 2] {
    let (mut plain, mut squares) = ([T::zero(); LANES], [T::zero(); LANES]);
    let (x, tail) = x.as_chunks::<LANES>();
    for x in x {
        for i in 0..LANES {
            plain[i] += x[i];
            squares[i] += (x[i] - mean) * (x[i] - mean);
        }
    }
    for (i, &x) in tail.iter().enumerate() {
        plain[i] += x;
        squares[i] += (x - mean) * (x - mean);
    }
    [plain, squares].map(|lanes| lanes.iter().map(|lane| lane.wide()).sum())
}

/// Mean and variance (of the population) of each channel.
pub(super) fn moments<T: Scalar>(x: &[T], sizes: Sizes, threads: &Threads) -> (Vec<f64>, Vec<f64>) {
    let Sizes { samples, channels, size } = sizes;
    let count = (samples * size) as f64;
    let planes = |c: usize| (0..samples).map(move |sample| &x[(sample * channels + c) * size..][..size]);
    let found = each_channel(sizes, threads, |c| {
        let mean = planes(c).map(|x| squares(x, T::zero())[0]).sum::<f64>() / count;
        // About the rounded mean, and moved to the mean itself.
        let (about, mut sums) = (T::of(mean), [0.0; 2]);
        planes(c).map(|x| squares(x, about)).for_each(|found| sums = [sums[0] + found[0], sums[1] + found[1]]);
        [mean, sums[1] / count - (mean - about.wide()).powi(2)]
    });
    (found.iter().map(|c| c[0]).collect(), found.iter().map(|c| c[1].max(0.0)).collect())
}

/// Of each channel the sum of `g`, and that of `g` times the distance of `x` from the mean.
pub(super) fn weighted<T: Scalar>(g: &[T], x: &[T], mean: &[f64], sizes: Sizes, threads: &Threads) -> (Vec<f64>, Vec<f64>) {
    let Sizes { samples, channels, size } = sizes;
    let found = each_channel(sizes, threads, |c| {
        let mut sums = [0.0; 2];
        for sample in 0..samples {
            let range = (sample * channels + c) * size..(sample * channels + c + 1) * size;
            let found = plane(&g[range.clone()], &x[range], T::of(mean[c]));
            sums = [sums[0] + found[0], sums[1] + found[1]];
        }
        sums
    });
    (found.iter().map(|c| c[0]).collect(), found.iter().map(|c| c[1]).collect())
}

/// Calls `f` with the channel of each plane, the plane of each of `from`, and that of `y`.
pub(super) fn each_plane<T: Scalar, const N: usize>(
    from: [&[T]; N],
    y: &mut [T],
    sizes: Sizes,
    threads: &Threads,
    f: impl Fn(usize, [&[T]; N], &mut [T]) + Sync + Send,
) {
    let size = sizes.size.max(1);
    let part = (y.len() / size).div_ceil(threads.parts(COST * y.len() as u64)).max(1);
    let items: Vec<_> = y.chunks_mut(part * size).enumerate().collect();
    threads.for_each(items, |(number, y)| {
        for (i, y) in y.chunks_exact_mut(size).enumerate() {
            let at = number * part + i;
            f(at % sizes.channels, from.map(|x| &x[at * size..(at + 1) * size]), y);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::noise;
    use super::*;

    #[test]
    fn threads_do_not_change_the_bits_and_the_moments_are_those_of_f64() {
        let sizes = Sizes { samples: 5, channels: 33, size: 331 };
        let x: Vec<f32> = noise(5 * 33 * 331, 1).iter().map(|x| x + 100.0).collect();
        let g = noise(x.len(), 2);
        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        let (two, one) = (Threads::new(2).unwrap(), Threads::single());
        let (mean, variance) = moments(&x, sizes, &one);
        assert_eq!(moments(&x, sizes, &two), (mean.clone(), variance.clone()));
        let exact = moments(&wide(&x), sizes, &one);
        let near = |found: &[f64], want: &[f64], bound: f64| found.iter().zip(want).all(|(a, b)| (a - b).abs() <= bound * b.abs().max(1.0));
        assert!(near(&mean, &exact.0, 1e-6) && near(&variance, &exact.1, 1e-5), "{mean:?} {variance:?} {exact:?}");
        let sums = weighted(&g, &x, &mean, sizes, &one);
        assert_eq!(weighted(&g, &x, &mean, sizes, &two), sums);
        let exact = weighted(&wide(&g), &wide(&x), &mean, sizes, &one);
        assert!(near(&sums.0, &exact.0, 1e-3) && near(&sums.1, &exact.1, 1e-2), "{sums:?} {exact:?}");
        let through = |threads: &Threads| {
            let mut y = vec![0.0; x.len()];
            each_plane([&x, &g], &mut y, sizes, threads, |c, [x, g], y| y.iter_mut().zip(x).zip(g).for_each(|((y, x), g)| *y = x * g + c as f32));
            y
        };
        assert!(through(&one) == through(&two));
        assert_eq!(through(&one)[331 * 34], x[331 * 34] * g[331 * 34] + 1.0);
    }
}
