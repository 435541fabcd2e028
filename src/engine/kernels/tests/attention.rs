//! Attention of a head against its definition in f64, for every instruction set, with rows that lie apart.

use super::{Random, bits};
use crate::engine::kernels::attention::{Buffers, Head, Mask, Rows, attend, few};
use crate::engine::kernels::isa::Isa;

fn definition(head: &Head<'_>) -> Vec<f64> {
    let mut y = Vec::new();
    for query in 0..head.queries {
        let score = |key: usize| {
            let product = |d: usize| {
                let k = if head.k_transposed { d * head.k.ld + key } else { key * head.k.ld + d };
                f64::from(head.q.data[query * head.q.ld + d]) * f64::from(head.k.data[k])
            };
            let added = head.mask.map_or(0.0, |mask| mask.data[query * mask.row + if mask.per_key { key } else { 0 }]);
            (0..head.depth).map(product).sum::<f64>() * f64::from(head.scale) + f64::from(added)
        };
        let scores: Vec<f64> = (0..head.keys).map(score).collect();
        let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - greatest).exp()).collect();
        let total: f64 = weights.iter().sum();
        y.extend(
            (0..head.width)
                .map(|e| (0..head.keys).map(|key| weights[key] / total * f64::from(head.v.data[key * head.v.ld + e])).sum::<f64>()),
        );
    }
    y
}

#[test]
fn a_head_matches_its_definition() {
    let mut random = Random::new(21);
    for (queries, keys, depth, width) in
        [(1, 1, 1, 1), (1, 129, 64, 64), (2, 17, 33, 65), (3, 40, 8, 5), (50, 50, 32, 32), (197, 197, 64, 64)]
    {
        for (k_transposed, apart, masked) in [(false, 0, 0), (false, 7, 1), (true, 3, 2), (false, 96, 3)] {
            let (k_rows, k_columns) = if k_transposed { (depth, keys) } else { (keys, depth) };
            let data = [queries * (depth + apart), k_rows * (k_columns + apart), keys * (width + apart)].map(|len| random.values(len));
            let mask = random.values(queries * keys);
            let head = Head {
                q: Rows { data: &data[0], ld: depth + apart },
                k: Rows { data: &data[1], ld: k_columns + apart },
                k_transposed,
                v: Rows { data: &data[2], ld: width + apart },
                mask: match masked {
                    0 => None,
                    1 => Some(Mask { data: &mask, row: keys, per_key: true }),
                    2 => Some(Mask { data: &mask, row: 0, per_key: true }),
                    _ => Some(Mask { data: &mask, row: 1, per_key: false }),
                },
                scale: 0.3,
                nan_weight: None,
                queries,
                few: few(queries, keys),
                keys,
                depth,
                width,
            };
            let want = definition(&head);
            for isa in Isa::available() {
                let ldy = width + apart;
                let mut y = vec![f32::NAN; queries * ldy];
                attend(isa, &head, &mut y, ldy, &mut Buffers::default());
                for (i, want) in want.iter().enumerate() {
                    let got = y[i / width * ldy + i % width];
                    // Weights within a few ULP of the scores' error, values at most 1.
                    assert!((f64::from(got) - want).abs() <= 1e-5, "{isa} {queries}x{keys}x{depth}: {got}, want {want}");
                }
                // A query alone has the bits that it has among others.
                let mut alone = vec![0.0; ldy];
                attend(isa, &Head { queries: 1, ..head }, &mut alone, ldy, &mut Buffers::default());
                assert_eq!(bits(&alone[..width]), bits(&y[..width]), "{isa} {queries}x{keys}x{depth}");
            }
        }
    }
}
