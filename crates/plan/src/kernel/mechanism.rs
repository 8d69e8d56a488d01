//! Constants of how kernels are written, the same on every accelerator and for every model.

/// How tiled kernels behave beyond what the data sheet tells. Fitted once over all accelerators;
/// see `docs/kernels.md` for the fit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mechanism {
    /// Bytes per SM and clock that the last-level cache delivers to an SM's operand buffers,
    /// counted after multicast between neighbouring SMs.
    pub delivery_bytes_per_sm_clock: f64,
    /// Cycles in which a GEMM tile fills its pipeline and stores its result, as far as the next
    /// tile does not hide them, by generation of the tensor cores: warp-synchronous
    /// (Ampere), asynchronous (Hopper), with results in their own memory (Blackwell).
    pub gemm_tile_cycles: [f64; 3],
    /// Part of an incomplete last wave that is really waited for: SMs that stay idle leave power
    /// and cache bandwidth to the others, and persistent kernels balance.
    pub wave_tail: f64,
    /// Cycles that a split reduction adds to the kernel for its second step.
    pub split_cycles: f64,
    /// Share of the last-level cache that keeps operands between the waves of a GEMM.
    pub cache_share: f64,
    /// Part of the memory bandwidth of a long stream that operands arrive at.
    pub gemm_memory: f64,
    /// Part of an incomplete last wave of attention tiles that is waited for.
    pub attention_tail: f64,
    /// Time of a byte written over a byte read: the memory turns around.
    pub write_cost: f64,
    /// Rows of queries in one tile of attention; Blackwell keeps two tiles in flight.
    pub attention_rows: f64,
    /// Keys in one step of attention: a causal mask computes whole steps.
    pub attention_keys: f64,
    /// Cycles in which an attention tile loads its queries, normalises and stores.
    pub attention_tile_cycles: f64,
    /// The same going back, where a tile loads keys and values and stores their gradients.
    pub backward_tile_cycles: f64,
    /// Part of the exponentials that no matrix product hides (and the other way round).
    pub exponent_serial: f64,
    /// Memory bandwidth that an SM can ask for over its even share.
    pub sm_memory_surplus: f64,
    /// Bytes per SM and clock that a kernel reads from the last-level cache when its data lie there.
    pub cache_bytes_per_sm_clock: f64,
    /// Share of the last-level cache that a repeated kernel finds its data in.
    pub warm_share: f64,
    /// Time between two dependent kernels of a CUDA graph beyond the floor of a kernel [s].
    pub graph_gap: f64,
    /// Latency of the first and last bytes of a kernel, which no other byte hides [s].
    pub stream_ramp: f64,
    /// Bytes per SM and clock that elementwise kernels move at most.
    pub elementwise_bytes_per_sm_clock: f64,
    /// The same of the loss over logits in one kernel.
    pub softmax_bytes_per_sm_clock: f64,
    /// The same of the loss as a chain of framework kernels.
    pub softmax_chain_bytes_per_sm_clock: f64,
    /// The same of a framework's kernels over operands of two widths.
    pub mixed_bytes_per_sm_clock: f64,
    /// The same of a framework's kernels that take whole rows by an index.
    pub row_bytes_per_sm_clock: f64,
    /// The same of those that add to such rows element by element.
    pub scatter_add_bytes_per_sm_clock: f64,
    /// The same of those that add to them row by row.
    pub index_add_bytes_per_sm_clock: f64,
    /// The same of kernels that make maps of rows; an entry counts four bytes read and four written.
    pub map_bytes_per_sm_clock: f64,
    /// The same of a framework's own kernels over views with strides or repeated operands.
    pub strided_bytes_per_sm_clock: f64,
    /// The same of a compiler's kernels that write the transpose of what they read.
    pub transposed_bytes_per_sm_clock: f64,
    /// Part of a gradient buffer's traffic that the product which adds to it does not hide.
    pub accumulate_exposed: f64,
    /// Exponent of the mean under which operands arrive beside the math of products that are
    /// launched one for each expert (4 within one kernel; 1 would hide nothing), where results are
    /// written and where they are added to a buffer.
    pub apart_overlap: [f64; 2],
    /// Exponent by which the clock under the power limit rises as tensor cores are busy for less of
    /// the time: 1 at a constant voltage, less where the voltage rises with the clock.
    pub clock_by_load: f64,
    /// Rate of attention whose heads are wider than 128 over that of others, forward and backward,
    /// where results lie in tensor memory.
    pub wide_heads: [f64; 2],
}

/// The constants in use.
pub const MECHANISM: Mechanism = Mechanism {
    delivery_bytes_per_sm_clock: 70.0,
    gemm_tile_cycles: [4300.0, 2600.0, 1000.0],
    wave_tail: 0.5,
    split_cycles: 10_000.0,
    cache_share: 0.45,
    gemm_memory: 0.85,
    attention_tail: 1.0,
    write_cost: 1.2,
    attention_rows: 128.0,
    attention_keys: 128.0,
    attention_tile_cycles: 5400.0,
    backward_tile_cycles: 8000.0,
    exponent_serial: 0.4,
    sm_memory_surplus: 1.6,
    cache_bytes_per_sm_clock: 40.0,
    warm_share: 0.6,
    graph_gap: 0.5e-6,
    stream_ramp: 1.1e-6,
    elementwise_bytes_per_sm_clock: 22.5,
    softmax_bytes_per_sm_clock: 12.8,
    softmax_chain_bytes_per_sm_clock: 9.5,
    mixed_bytes_per_sm_clock: 12.0,
    row_bytes_per_sm_clock: 12.0,
    scatter_add_bytes_per_sm_clock: 2.5,
    index_add_bytes_per_sm_clock: 1.2,
    map_bytes_per_sm_clock: 0.4,
    strided_bytes_per_sm_clock: 5.0,
    transposed_bytes_per_sm_clock: 3.0,
    accumulate_exposed: 0.3,
    apart_overlap: [1.8, 1.5],
    clock_by_load: 0.75,
    wide_heads: [0.87, 0.8],
};
