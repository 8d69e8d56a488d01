//! What one kernel (or one fused group of kernels) must compute, read and write.

use rackflow_units::{Bytes, Precision};

/// Which pass an operation belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// Forward pass.
    Forward,
    /// Backward pass.
    Backward,
}

/// One operation on one GPU, after sharding. Sizes are those of one rank.
#[derive(Debug, Clone, PartialEq)]
pub enum Operation {
    /// `batch` independent products of an m x k with a k x n matrix.
    Gemm {
        /// Rows of the left operand.
        m: u64,
        /// Columns of the right operand.
        n: u64,
        /// The reduced dimension.
        k: u64,
        /// Independent products in one launch.
        batch: u64,
        /// Equal pieces of a longer product, of which this is one, that are launched on several streams in turn:
        /// tiles of the next run on the SMs that the last wave of this one leaves. 1: it runs alone.
        pieces: u64,
        /// SMs that the kernel leaves to communication beside it.
        sms_left: u32,
        /// Format of both operands.
        precision: Precision,
        /// Bytes per element of the result that the kernel writes; a result that is accumulated
        /// into an fp32 buffer (weight gradients) counts 8: it is read and written.
        output_bytes: u64,
    },
    /// `groups` products that share n and k: the experts of one rank.
    GroupedGemm {
        /// Experts on this rank.
        groups: u64,
        /// Rows over all groups (tokens routed to this rank).
        m_total: u64,
        /// Columns.
        n: u64,
        /// The reduced dimension.
        k: u64,
        /// Format of both operands.
        precision: Precision,
        /// As in [`Operation::Gemm`].
        output_bytes: u64,
        /// The groups are reduced over m (weight gradients): each group's result is n x k.
        weight_gradient: bool,
        /// One kernel for each group from one call (Transformer Engine's grouped linear layers), not
        /// one kernel for all.
        apart: bool,
    },
    /// Fused (flash) attention over `batch` sequences.
    Attention {
        /// Sequences.
        batch: u64,
        /// Query heads on this rank.
        heads: u64,
        /// Key-value heads on this rank.
        kv_heads: u64,
        /// Query positions on this rank.
        query_len: u64,
        /// Key positions.
        kv_len: u64,
        /// Width of query and key.
        head_dim_qk: u64,
        /// Width of value.
        head_dim_v: u64,
        /// Fraction of the `query_len` x `kv_len` square that is computed: 0.5 for causal.
        mask_fraction: f64,
        /// Forward, or backward with its five products instead of two.
        direction: Direction,
        /// Format of the operands.
        precision: Precision,
    },
    /// Anything that only streams memory: norms, activations, residuals, rotary embedding,
    /// quantisation, permutation, embedding look-up, optimizer.
    Stream {
        /// Bytes read.
        read: Bytes,
        /// Bytes written.
        write: Bytes,
        /// Kernels launched.
        kernels: u32,
        /// fp32 arithmetic outside the tensor cores.
        flops: f64,
        /// How the kernels ask for their bytes.
        access: Access,
    },
}

/// How a streaming kernel is written. Memory that is fast enough waits for the SMs to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Access {
    /// Long and contiguous: copies, the optimizer.
    Copy,
    /// Element by element with arithmetic between: norms, activations, casts.
    Elementwise,
    /// Rows of logits in one kernel, with maxima, exponentials and sums.
    Softmax,
    /// The same in a chain of framework kernels in fp32.
    SoftmaxChain,
    /// Element by element over operands of two widths, which a framework's kernel does not load as vectors:
    /// a gradient in 16 bits added to its buffer in 32.
    Mixed,
    /// Whole rows from places that an index names, by a framework's kernel for any index.
    Rows,
    /// Whole rows added to places that an index names, element by element with atomic additions
    /// (PyTorch, `scatter_add_`).
    ScatterAdd,
    /// The same by the kernel for whole rows, the gradient of taking them (PyTorch, `index_add_`).
    IndexAdd,
    /// Maps of small integers that say where rows go: counted and sorted for each token (Transformer Engine,
    /// `make_row_id_map`).
    Maps,
    /// One framework kernel for each step, over views whose elements do not lie side by side, or whose
    /// operands are repeated: such kernels find the place of every element anew.
    Strided,
    /// Columns of a matrix are read into rows of its transpose by a compiler's kernel (TorchInductor).
    Transposed,
}

impl Operation {
    /// Tensor-core operations that this operation executes (a multiply-add counts two).
    pub fn tensor_flops(&self) -> f64 {
        match *self {
            Self::Gemm { m, n, k, batch, .. } => {
                2.0 * m as f64 * n as f64 * k as f64 * batch as f64
            }
            Self::GroupedGemm { m_total, n, k, .. } => 2.0 * m_total as f64 * n as f64 * k as f64,
            Self::Attention {
                batch,
                heads,
                query_len,
                kv_len,
                head_dim_qk,
                head_dim_v,
                mask_fraction,
                direction,
                ..
            } => {
                let square = (batch * heads * query_len) as f64 * kv_len as f64 * mask_fraction;
                let forward = 2.0 * square * (head_dim_qk + head_dim_v) as f64;
                match direction {
                    Direction::Forward => forward,
                    // dV, dP over the value width; S again, dQ, dK over the query width.
                    Direction::Backward => 2.0 * square * (3 * head_dim_qk + 2 * head_dim_v) as f64,
                }
            }
            Self::Stream { .. } => 0.0,
        }
    }
}
