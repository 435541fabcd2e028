//! Points and weights of Gauss and Legendre for an integral from 0 to 1: exact for polynomials of degree 2n − 1.

/// `n` points within 0 and 1, ascending, with their weights, whose sum is 1.
pub(super) fn gauss_legendre(n: usize) -> Vec<(f64, f64)> {
    let mut points = vec![(0.0, 0.0); n];
    for i in 0..n.div_ceil(2) {
        // Tricomi's estimate of the root, then Newton's method on the Legendre polynomial.
        let mut x = (std::f64::consts::PI * (i as f64 + 0.75) / (n as f64 + 0.5)).cos();
        let mut slope = 1.0;
        for _ in 0..64 {
            let (value, derivative) = legendre(n, x);
            slope = derivative;
            let step = value / derivative;
            x -= step;
            if step.abs() < 1e-15 {
                break;
            }
        }
        let weight = 1.0 / ((1.0 - x * x) * slope * slope);
        points[i] = (0.5 - x / 2.0, weight);
        points[n - 1 - i] = (0.5 + x / 2.0, weight);
    }
    points
}

/// The Legendre polynomial of degree `n` and its derivative at `x`, by Bonnet's recursion.
fn legendre(n: usize, x: f64) -> (f64, f64) {
    let (mut before, mut value) = (0.0, 1.0);
    for k in 1..=n {
        let k = k as f64;
        (before, value) = (value, ((2.0 * k - 1.0) * x * value - (k - 1.0) * before) / k);
    }
    (value, n as f64 * (x * value - before) / (x * x - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polynomials_are_integrated_exactly() {
        for n in [1, 2, 3, 10, 50, 51, 300] {
            let points = gauss_legendre(n);
            assert!(points.is_sorted_by(|a, b| a.0 < b.0) && points.iter().all(|(x, _)| (0.0..=1.0).contains(x)), "{n}");
            for degree in [0, 1, 2 * n as i32 - 1] {
                let found: f64 = points.iter().map(|(x, w)| w * x.powi(degree)).sum();
                assert!((found - 1.0 / f64::from(degree + 1)).abs() < 1e-13, "{n} points, degree {degree}: {found}");
            }
        }
    }
}
