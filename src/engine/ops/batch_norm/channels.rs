//! Sums over channels and passes over planes, as training does them: on several threads, in an order that they do not change.

use super::Sizes;
use crate::engine::ops::scalar::Scalar;
use crate::engine::threads::Threads;

/// Partial sums side by side: element `i` of a plane is in sum `i % LANES`.
const LANES: usize = 16;

/// Operations for each element, memory counted by its time: what threads are asked for.
const COST: u64 = 4;

/// For each channel the two numbers that `f` gives, which goes through the planes of the channel in their order.
fn each_channel(sizes: Sizes, threads: &Threads, found: [&mut Vec<f64>; 2], f: impl Fn(usize) -> [f64; 2] + Sync + Send) {
    let part = sizes.channels.div_ceil(threads.parts(COST * (sizes.samples * sizes.channels * sizes.size) as u64)).max(1);
    let [first, second] = found.map(|list| {
        list.clear();
        list.resize(sizes.channels, 0.0);
        list.chunks_mut(part)
    });
    threads.for_each(first.zip(second).enumerate(), |(number, (first, second))| {
        for (i, (first, second)) in first.iter_mut().zip(second).enumerate() {
            [*first, *second] = f(number * part + i);
        }
    });
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

/// The same of one tensor: the distances of its elements from `about`, and their squares.
fn squares<T: Scalar>(x: &[T], about: T) -> [f64; 2] {
    let (mut plain, mut squares) = ([T::zero(); LANES], [T::zero(); LANES]);
    let (x, tail) = x.as_chunks::<LANES>();
    for x in x {
        for i in 0..LANES {
            let off = x[i] - about;
            plain[i] += off;
            squares[i] += off * off;
        }
    }
    for (i, &x) in tail.iter().enumerate() {
        plain[i] += x - about;
        squares[i] += (x - about) * (x - about);
    }
    [plain, squares].map(|lanes| lanes.iter().map(|lane| lane.wide()).sum())
}

/// Mean and variance (of the population) of each channel.
///
/// Both from one pass, about the mean of the first plane: the mean itself lies so near to it that no more than some bits of the variance
/// are lost, fewer than log2 of the samples.
pub(super) fn moments<T: Scalar>(x: &[T], sizes: Sizes, threads: &Threads, found: [&mut Vec<f64>; 2]) {
    let Sizes { samples, channels, size } = sizes;
    let count = (samples * size) as f64;
    let planes = |c: usize| (0..samples).map(move |sample| &x[(sample * channels + c) * size..][..size]);
    each_channel(sizes, threads, found, |c| {
        let first = planes(c).next().filter(|x| !x.is_empty());
        let about = first.map_or(T::zero(), |x| T::of(squares(x, T::zero())[0] / size as f64));
        let mut sums = [0.0; 2];
        planes(c).map(|x| squares(x, about)).for_each(|found| sums = [sums[0] + found[0], sums[1] + found[1]]);
        let off = sums[0] / count;
        // The greater of the two would be zero where they are NaN.
        let variance = sums[1] / count - off * off;
        [about.wide() + off, if variance < 0.0 { 0.0 } else { variance }]
    });
}

/// Of each channel the sum of `g`, and that of `g` times the distance of `x` from the mean.
pub(super) fn weighted<T: Scalar>(g: &[T], x: &[T], mean: &[f64], sizes: Sizes, threads: &Threads, found: [&mut Vec<f64>; 2]) {
    let Sizes { samples, channels, size } = sizes;
    each_channel(sizes, threads, found, |c| {
        let mut sums = [0.0; 2];
        for sample in 0..samples {
            let range = (sample * channels + c) * size..(sample * channels + c + 1) * size;
            let found = plane(&g[range.clone()], &x[range], T::of(mean[c]));
            sums = [sums[0] + found[0], sums[1] + found[1]];
        }
        sums
    });
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
    let items = y.chunks_mut(part * size).enumerate();
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
        // Lists that held something else.
        let lists = |f: &dyn Fn([&mut Vec<f64>; 2])| {
            let mut lists = [vec![7.0; 40], vec![]];
            f(lists.each_mut());
            let [first, second] = lists;
            (first, second)
        };
        let (mean, variance) = lists(&|to| moments(&x, sizes, &one, to));
        assert_eq!(lists(&|to| moments(&x, sizes, &two, to)), (mean.clone(), variance.clone()));
        let exact = lists(&|to| moments(&wide(&x), sizes, &one, to));
        let near = |found: &[f64], want: &[f64], bound: f64| found.iter().zip(want).all(|(a, b)| (a - b).abs() <= bound * b.abs().max(1.0));
        assert!(near(&mean, &exact.0, 1e-6) && near(&variance, &exact.1, 1e-5), "{mean:?} {variance:?} {exact:?}");
        let sums = lists(&|to| weighted(&g, &x, &mean, sizes, &one, to));
        assert_eq!(lists(&|to| weighted(&g, &x, &mean, sizes, &two, to)), sums);
        let exact = lists(&|to| weighted(&wide(&g), &wide(&x), &mean, sizes, &one, to));
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
