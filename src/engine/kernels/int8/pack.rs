//! The right operand in the order of tiles.

#[cfg(target_arch = "x86_64")]
use super::avx2_order::Order;
use super::{FLIP, Line, PANEL, STEP, TILE_COLUMNS, TILE_LINES};
use crate::engine::kernels::isa::Isa;

/// The codes of a right operand.
#[derive(Clone, Copy, Debug)]
pub enum RightCodes<'a> {
    /// Signed ones, as they are multiplied.
    Signed(&'a [i8]),
    /// Unsigned ones.
    Unsigned(&'a [u8]),
}

impl RightCodes<'_> {
    fn len(&self) -> usize {
        match self {
            RightCodes::Signed(codes) => codes.len(),
            RightCodes::Unsigned(codes) => codes.len(),
        }
    }
}

/// A constant right-hand matrix `b[k, n]` of 8-bit codes, packed once at load.
#[derive(Clone, Debug)]
pub struct PackedInt8 {
    isa: Isa,
    k: usize,
    n: usize,
    lines: Vec<Line>,
    /// For each column the sum of its codes less their zero points.
    sums: Vec<i32>,
    /// The zero point of each column in terms of the packed codes; none where all are zero.
    zeros: Option<Vec<i32>>,
    /// In which order the lines of each panel are, where they are sorted.
    #[cfg(target_arch = "x86_64")]
    orders: Vec<Order>,
}

impl PackedInt8 {
    /// Packs `codes`, which are `[k, n]` row-major, or `[n, k]` if `transposed`, with one zero point or one per column.
    ///
    /// Panics unless there are `k * n` codes and 1 or `n` zero points, and the instruction set is available.
    pub fn pack(isa: Isa, codes: RightCodes<'_>, (k, n): (usize, usize), transposed: bool, zeros: &[i32]) -> PackedInt8 {
        isa.require();
        assert_eq!(codes.len(), k * n, "codes against k * n");
        assert!(zeros.len() == 1 || zeros.len() == n, "{} zero points for {n} columns", zeros.len());
        let (lines, shift) = match codes {
            RightCodes::Signed(codes) => (lines(codes, k, n, transposed, |code| code), 0),
            RightCodes::Unsigned(codes) => (lines(codes, k, n, transposed, |code| (code ^ FLIP) as i8), 128),
        };
        let zeros: Vec<i32> = (0..n).map(|j| zeros[if zeros.len() == 1 { 0 } else { j }] - shift).collect();
        let mut packed = PackedInt8 {
            isa,
            k,
            n,
            lines,
            sums: vec![0; n],
            zeros: None,
            #[cfg(target_arch = "x86_64")]
            orders: Vec::new(),
        };
        for column in (0..n).step_by(PANEL) {
            let sums = panel_sums(packed.panel(column));
            for j in column..n.min(column + PANEL) {
                packed.sums[j] = sums[j - column] - zeros[j].wrapping_mul(k as i32);
            }
        }
        packed.zeros = zeros.iter().any(|&zero| zero != 0).then_some(zeros);
        #[cfg(target_arch = "x86_64")]
        if super::sorts_lines(isa) && k > 0 {
            let len = packed.panel_len();
            // SAFETY: whoever sorts lines has the instructions.
            packed.orders = packed.lines.chunks_exact_mut(len).flat_map(|panel| unsafe { Order::sort(panel) }).collect();
        }
        packed
    }

    /// The instruction set it was packed for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Rows: the length of the sums.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// For each column the sum of its codes less their zero points: what a left zero point of 1 takes from each sum.
    pub fn column_sums(&self) -> &[i32] {
        &self.sums
    }

    /// The zero point of each column as it is multiplied with the sum of a left row; none where all are zero.
    pub fn zeros(&self) -> Option<&[i32]> {
        self.zeros.as_deref()
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        #[cfg(target_arch = "x86_64")]
        let orders: usize = self.orders.iter().map(Order::bytes).sum();
        #[cfg(not(target_arch = "x86_64"))]
        let orders = 0;
        size_of_val(self.lines.as_slice()) + size_of_val(self.sums.as_slice()) + self.zeros.as_deref().map_or(0, size_of_val) + orders
    }

    /// Steps of `k`.
    pub fn steps(&self) -> usize {
        self.k.div_ceil(STEP)
    }

    /// The panel that starts at `column`.
    pub(super) fn panel(&self, column: usize) -> &[Line] {
        let len = self.panel_len();
        &self.lines[column / PANEL * len..][..len]
    }

    fn panel_len(&self) -> usize {
        self.steps() * 2 * TILE_LINES
    }

    /// The orders of the panel that starts at `column`, where lines are sorted.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn orders(&self, column: usize) -> &[Order] {
        let len = self.orders.len() / self.n.div_ceil(PANEL).max(1);
        &self.orders[column / PANEL * len..][..len]
    }
}

fn lines<T: Copy>(codes: &[T], k: usize, n: usize, transposed: bool, signed: impl Fn(T) -> i8) -> Vec<Line> {
    let steps = k.div_ceil(STEP);
    let mut lines = vec![Line([0; 64]); n.div_ceil(PANEL) * steps * 2 * TILE_LINES];
    for (index, line) in lines.iter_mut().enumerate() {
        let (tile, quad) = (index / TILE_LINES, index % TILE_LINES);
        let (panel, step, half) = (tile / (2 * steps), tile / 2 % steps, tile % 2);
        let (row, column) = (step * STEP + quad * 4, panel * PANEL + half * TILE_COLUMNS);
        let (rows, columns) = (k.saturating_sub(row).min(4), n.saturating_sub(column).min(TILE_COLUMNS));
        if rows == 0 || columns == 0 {
            continue;
        }
        if transposed {
            for (j, to) in line.0.as_chunks_mut::<4>().0.iter_mut().enumerate().take(columns) {
                let from = &codes[(column + j) * k + row..][..rows];
                to.iter_mut().zip(from).for_each(|(to, code)| *to = signed(*code));
            }
        } else {
            for i in 0..rows {
                let from = &codes[(row + i) * n + column..][..columns];
                line.0[i..].iter_mut().step_by(4).zip(from).for_each(|(to, code)| *to = signed(*code));
            }
        }
    }
    lines
}

/// The sums of the codes of a panel's columns.
fn panel_sums(panel: &[Line]) -> [i32; PANEL] {
    let mut sums = [0_i32; PANEL];
    for (index, line) in panel.iter().enumerate() {
        let half = index / TILE_LINES % 2 * TILE_COLUMNS;
        for (sum, codes) in sums[half..half + TILE_COLUMNS].iter_mut().zip(line.0.as_chunks::<4>().0) {
            *sum += codes.iter().map(|&code| i32::from(code)).sum::<i32>();
        }
    }
    sums
}
