"""Times kernels of one NVIDIA GPU and writes rows that `rackflow validate kernels --data` reads.

    python3 kernels.py h100-sxm rows.jsonl            # all sections, some five minutes
    python3 kernels.py h100-sxm rows.jsonl products streams
    rackflow validate kernels --data rows.jsonl --rows

Needs PyTorch from 2.8 on with CUDA (run with 2.11), and nvidia-ml-py for `sustained`. What a GPU or a version lacks is
named and left out.

Data are random: zeros draw less power and run up to a tenth faster. Inputs of products and streams rotate, so that the last-level
cache of an H100 holds none that is larger than some 10 MB. Kernels are launched from a CUDA graph of some milliseconds (backward: by the host), eight
times, and the median counts: the GPU is warm then, but not at the clock that hours leave. `sustained` runs seconds of one
kernel and says what is left of it.
"""

import importlib.util
import json
import sys
import threading
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

DEVICE = "cuda"
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn


class Rows:
    """The file that is written, a row a line."""

    def __init__(self, accelerator, path):
        properties = torch.cuda.get_device_properties(0)
        self.accelerator = accelerator
        self.citation = (
            f"examples/measure/kernels.py, {time.strftime('%Y-%m-%d')}, {properties.name}, PyTorch {torch.__version__}, "
            f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        )
        self.file = open(path, "a")
        self.count = 0

    def add(self, kind, us, **fields):
        row = {"id": f"{self.accelerator}-{int(time.time())}-{self.count:04d}", "kind": kind}
        row |= {"citation": self.citation, "accelerator": self.accelerator, **fields, "us": round(us, 3)}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        self.count += 1

    def time(self, kind, call, sets=1, graph=True, **fields):
        """Adds a row with the time of `call(i)`, which works on the i-th of so many sets of inputs."""
        try:
            self.add(kind, timed(call, sets, graph), **fields)
        except (RuntimeError, AttributeError, TypeError) as error:
            lacks(kind, fields, error)


def lacks(kind, fields, error):
    """Names what this GPU or this PyTorch cannot run."""
    print(kind, fields, "was not timed:", str(error).split("\n")[0], file=sys.stderr)
    torch.cuda.synchronize()


def median(values):
    return sorted(values)[len(values) // 2]


def between_events(call, repeats):
    """Mean time of a call [us]."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for i in range(repeats):
        call(i)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3 / repeats


def timed(call, sets, graph):
    """Median over eight runs of some milliseconds [us]."""
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for i in range(2):
            call(i % sets)
        about = between_events(lambda i: call(i % sets), 4)
        repeats = max(3, min(256, int(3000 / max(about, 1.0)) + 1))
        if not graph:
            return median([between_events(lambda i: call(i % sets), repeats) for _ in range(9)][1:])
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded, stream=side):
            for i in range(repeats):
                call(i % sets)
        return median([between_events(lambda _: recorded.replay(), 1) / repeats for _ in range(9)][1:])


def sets_for(size):
    """How many inputs of so many bytes no cache holds together."""
    return max(1, min(12, int(150e6 // size) + 1))


def random(*shape):
    return torch.randn(*shape, device=DEVICE, dtype=BF16)


def cudnn():
    """The release that the model has measured and that is nearest below this one: 9.1, 9.13 or 9.19."""
    minor = torch.backends.cudnn.version() // 100 % 100
    return f"cuDNN 9.{max(known for known in (1, 13, 19) if known <= max(minor, 1))}"


WIDTHS = [
    (4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336), (1280, 8192), (8192, 1024), (7168, 8192), (8192, 3584),
    (2304, 16384), (13312, 16384), (16384, 6656), (7168, 2048), (2112, 7168), (24576, 1536), (7168, 16384),
    (4096, 7168), (1536, 2048), (2048, 768), (5120, 5120), (1000, 1000), (5000, 5000), (3000, 7000), (32768, 4096),
]  # fmt: skip
MORE_ROWS = {(4096, 4096), (28672, 4096), (1280, 8192), (7168, 2048), (1536, 2048), (8192, 3584)}


def products(rows):
    """Of the layers of Llama, DeepSeek and Qwen, and odd ones: forward, input gradient, weight gradient."""
    for n, k in WIDTHS:
        for m in (128, 512, 1024, 2048, 4096, 8192, 16384):
            if m not in (1024, 4096, 8192) and (n, k) not in MORE_ROWS:
                continue
            sets = sets_for(2 * (m * k + n * k + m * n))
            x, w = [random(m, k) for _ in range(sets)], [random(n, k) for _ in range(sets)]
            out = [torch.empty(m, n, device=DEVICE, dtype=BF16) for _ in range(sets)]
            shape = {"format": "bf16", "m": m, "n": n, "k": k}
            rows.time("gemm", lambda i: torch.mm(x[i], w[i].t(), out=out[i]), sets, note="forward", **shape)
            if (n, k) in MORE_ROWS and m in (4096, 8192):
                wt = [one.t().contiguous() for one in w]
                rows.time("gemm", lambda i: torch.mm(x[i], wt[i], out=out[i]), sets, note="input gradient", **shape)
                xt = [one.t().contiguous() for one in x]
                rows.time("gemm", lambda i: torch.mm(xt[i].t(), wt[i], out=out[i]), sets, note="weight gradient", **shape)


def products_fp8(rows):
    """With a scale for each tensor, row, or block."""
    one = torch.tensor(1.0, device=DEVICE)
    for n, k in WIDTHS:
        if n % 128 or k % 128 or (n, k) in {(6144, 4096), (8192, 1024), (32768, 4096), (2304, 16384), (1536, 2048)}:
            continue
        for m in (512, 1024, 4096, 8192, 16384):
            sets = sets_for(m * k + n * k + 2 * m * n)
            x, w = [random(m, k).to(FP8) for _ in range(sets)], [random(n, k).to(FP8) for _ in range(sets)]

            def product(scale_x, scale_w, fast):
                return lambda i: torch._scaled_mm(
                    x[i], w[i].t(), scale_a=scale_x, scale_b=scale_w, out_dtype=BF16, use_fast_accum=fast
                )

            shape = {"m": m, "n": n, "k": k}
            rows.time("gemm", product(one, one, True), sets, format="fp8", note="a scale per tensor", **shape)
            if m == 8192:
                note = "a scale per tensor, sums in fp32"
                rows.time("gemm", product(one, one, False), sets, format="fp8", note=note, **shape)
            if m in (4096, 8192):
                by_row = torch.rand(m, 1, device=DEVICE), torch.rand(1, n, device=DEVICE)
                rows.time("gemm", product(*by_row, True), sets, format="fp8", note="a scale per row", **shape)
                by_block = torch.rand(k // 128, m, device=DEVICE).t(), torch.rand(n // 128, k // 128, device=DEVICE).t()
                rows.time("gemm", product(*by_block, False), sets, format="fp8_block128", note="a scale per block", **shape)


def grouped(rows):
    """Experts in one kernel."""
    for experts, each, n, k in [
        (8, 512, 4096, 7168), (8, 4096, 4096, 7168), (32, 128, 4096, 7168), (32, 512, 4096, 7168),
        (32, 512, 7168, 2048), (16, 1024, 1536, 2048), (16, 4096, 1536, 2048), (64, 256, 1536, 2048),
        (64, 1024, 2048, 768), (128, 256, 1536, 2048), (128, 256, 2048, 768), (8, 2048, 28672, 4096),
    ]:  # fmt: skip
        x, w = random(experts * each, k), random(experts, k, n)
        ends = torch.arange(1, experts + 1, device=DEVICE, dtype=torch.int32) * each
        shape = {"format": "bf16", "groups": experts, "m_per_group": each, "n": n, "k": k}
        rows.time("grouped_gemm_contiguous", lambda _: torch._grouped_mm(x, w, offs=ends), **shape)


def attention(rows):
    """16,384 tokens in sequences of several lengths, shared keys and values, DeepSeek's widths."""
    shapes = [(16384 // s, 2048 // d, 2048 // d, s, d, d) for d in (64, 128) for s in (512, 1024, 2048, 4096, 8192, 16384)]
    shapes += [(1, 64, 8, 8192, 128, 128), (1, 32, 8, 8192, 128, 128), (2, 32, 8, 4096, 128, 128), (1, 16, 2, 16384, 128, 128)]
    shapes += [(2, 32, 32, 4096, 192, 128)]
    for name, backend in ((cudnn(), SDPBackend.CUDNN_ATTENTION), ("FA2", SDPBackend.FLASH_ATTENTION)):
        for batch, heads, kv_heads, length, width, width_v in shapes:
            if name == "FA2" and (width != width_v or length < 2048):
                continue
            for causal in (True, False):
                if not causal and (heads != kv_heads or width != width_v):
                    continue
                q = random(batch, heads, length, width).requires_grad_()
                k = random(batch, kv_heads, length, width).requires_grad_()
                v = random(batch, kv_heads, length, width_v).requires_grad_()

                def forward(_=0):
                    shared = heads != kv_heads
                    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=shared)

                fields = {"format": "bf16", "implementation": name, "batch": batch, "heads": heads, "kv_heads": kv_heads}
                fields |= {"length": length, "head_dim": width, "head_dim_v": width_v, "causal": causal}
                with sdpa_kernel(backend):
                    with torch.no_grad():
                        rows.time("attention_training", forward, **fields, **{"pass": "forward"})
                    try:
                        out = forward()
                    except (RuntimeError, TypeError) as error:
                        lacks("attention_training", fields, error)
                        continue
                    gradient = torch.randn_like(out)

                    def backward(_=0):
                        return torch.autograd.grad(out, (q, k, v), gradient, retain_graph=True)

                    rows.time("attention_training", backward, graph=False, **fields, **{"pass": "backward"})


def streams(rows):
    """Kernels that only move memory, with some arithmetic."""
    for power in (12, 16, 20, 22, 24, 26, 28):
        n = 1 << power
        sets = sets_for(6 * n)
        a, b, c = ([random(n) for _ in range(sets)] for _ in range(3))
        for test, call, reads, writes in (
            ("copy", lambda i: c[i].copy_(a[i]), 2, 2),
            ("add", lambda i: torch.add(a[i], b[i], out=c[i]), 4, 2),
            ("silu", lambda i: F.silu(a[i]), 2, 2),
            ("gelu_tanh", lambda i: F.gelu(a[i], approximate="tanh"), 2, 2),
            ("gelu_erf", lambda i: F.gelu(a[i]), 2, 2),
            ("sum", lambda i: torch.sum(a[i]), 2, 0),
            ("fill", lambda i: c[i].zero_(), 0, 2),
        ):
            rows.time("stream", call, sets, test=test, read=reads * n, written=writes * n)
    for tokens, hidden in ((8192, 2048), (8192, 4096), (8192, 7168), (8192, 8192), (1024, 8192)):
        x, w = [random(tokens, hidden) for _ in range(6)], random(hidden)
        size = {"read": 2 * tokens * hidden, "written": 2 * tokens * hidden}
        rows.time("stream", lambda i: F.rms_norm(x[i], (hidden,), w), 6, test="rms_norm", **size)
        rows.time("stream", lambda i: F.layer_norm(x[i], (hidden,), w, w), 6, test="layer_norm", **size)
    for n in (1 << 20, 1 << 24, 1 << 27):
        states = [torch.randn(n, device=DEVICE).abs() for _ in range(4)]
        step = torch.ones((), device=DEVICE)

        def adamw(_):
            torch._fused_adamw_(
                *([one] for one in states), [], [step], lr=1e-4, beta1=0.9, beta2=0.95, weight_decay=0.1, eps=1e-8,
                amsgrad=False, maximize=False,
            )  # fmt: skip

        rows.time("stream", adamw, test="adamw", read=16 * n, written=12 * n)


def tokens(rows):
    """What PyTorch's own kernels take to route tokens to experts and back. The model has no rows for what finds the
    experts."""
    for count, hidden, top_k, experts in ((4096, 2048, 8, 128), (8192, 2048, 8, 128), (4096, 7168, 8, 256)):
        x, moved = random(count, hidden), random(count * top_k, hidden)
        origin = torch.randperm(count * top_k, device=DEVICE) // top_k
        wide = origin.unsqueeze(1).expand(count * top_k, hidden)
        scores = torch.randn(count, experts, device=DEVICE)
        choice = torch.topk(scores, top_k, dim=1).indices
        capacity = count * top_k // experts
        senders = 8
        chunks = [count * top_k // experts] * experts
        order = [sender * experts // senders + local for local in range(experts // senders) for sender in range(senders)]
        boxes = moved.view(senders, experts // senders, -1)
        one, all_ = 2 * count * hidden, 2 * count * hidden * top_k

        def zeros():
            return torch.zeros(count, hidden, device=DEVICE, dtype=BF16)

        def split_cat(_):
            parts = torch.split(moved, chunks)
            return torch.cat([parts[i] for i in order])

        for test, call, read, written in (
            ("index_select", lambda _: x.index_select(0, origin), one, all_),
            ("gather", lambda _: x.gather(0, wide), one, all_),
            ("scatter_add", lambda _: zeros().scatter_add_(0, wide, moved), all_, one),
            ("index_add", lambda _: zeros().index_add_(0, origin, moved), all_, one),
            ("split_cat", split_cat, all_, all_),
            ("transpose_chunks", lambda _: boxes.transpose(0, 1).contiguous(), all_, all_),
            ("topk", lambda _: torch.topk(scores, top_k, dim=1), 4 * count * experts, 12 * count * top_k),
            ("topk of tokens", lambda _: torch.topk(scores, capacity, dim=0, sorted=False), 4 * count * experts, 12 * count * top_k),
            ("sort of tokens", lambda _: torch.sort(scores, dim=0, descending=True), 4 * count * experts, 12 * count * experts),
            ("argsort", lambda _: torch.argsort(choice.view(-1), stable=True), 8 * count * top_k, 8 * count * top_k),
        ):  # fmt: skip
            rows.time("stream", call, test=test, read=read, written=written)
    for elements in (1 << 24, 1 << 28):
        kept, added = torch.zeros(elements, device=DEVICE), random(elements)
        rows.time("stream", lambda _: kept.add_(added), test="add_mixed", read=6 * elements, written=4 * elements)


def sustained(rows):
    """Seconds of one kernel: what the power limit leaves, with the clock and power that the driver reports."""
    import pynvml

    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
    log = []

    def watch():
        while True:
            clock = pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM)
            log.append((time.time(), clock, pynvml.nvmlDeviceGetPowerUsage(gpu) / 1e3))
            time.sleep(0.05)

    threading.Thread(target=watch, daemon=True).start()

    def hold(kind, call, **fields):
        try:
            torch.cuda.synchronize()
            time.sleep(2.0)
            per = max(1, int(50_000 / between_events(call, 2)))
            spans, begun = [], time.time()
            while time.time() - begun < 8.0:
                spans.append(between_events(call, per))
        except (RuntimeError, AttributeError, TypeError) as error:
            lacks(kind, fields, error)
            return
        at_first, later = min(spans[:2]), median(spans[len(spans) // 2 :])
        late = [entry for entry in log if entry[0] > begun + 4.0]
        clock, power = (sum(entry[i] for entry in late) / max(1, len(late)) for i in (1, 2))
        print(f"{fields}: {at_first:.1f} us at first, {later:.1f} later, {clock:.0f} MHz, {power:.0f} W")
        rows.add(kind, later, load="continuous", **fields)

    for m, n, k in ((8192, 8192, 8192), (8192, 28672, 4096), (8192, 4096, 14336)):
        x, w, out = random(m, k), random(n, k), torch.empty(m, n, device=DEVICE, dtype=BF16)
        hold("gemm", lambda _: torch.mm(x, w.t(), out=out), format="bf16", m=m, n=n, k=k)
    one, x, w = torch.tensor(1.0, device=DEVICE), random(8192, 8192).to(FP8), random(8192, 8192).to(FP8)

    def in_fp8(_):
        return torch._scaled_mm(x, w.t(), scale_a=one, scale_b=one, out_dtype=BF16, use_fast_accum=True)

    hold("gemm", in_fp8, format="fp8", m=8192, n=8192, k=8192)
    q, k, v = (random(4, 16, 4096, 128).requires_grad_() for _ in range(3))
    fields = {"format": "bf16", "implementation": cudnn(), "batch": 4, "heads": 16, "kv_heads": 16, "length": 4096}
    fields |= {"head_dim": 128, "causal": True}
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):

        def forward(_=0):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        with torch.no_grad():
            hold("attention_training", forward, **fields, **{"pass": "forward"})
        try:
            attended = forward()
        except RuntimeError as error:
            lacks("attention_training", fields, error)
            return
        gradient = torch.randn_like(attended)

        def backward(_):
            return torch.autograd.grad(attended, (q, k, v), gradient, retain_graph=True)

        hold("attention_training", backward, **fields, **{"pass": "backward"})


SECTIONS = {
    section.__name__: section
    for section in (products, products_fp8, grouped, attention, streams, tokens, sustained)
}


def main():
    if len(sys.argv) < 3 or not set(sys.argv[3:]) <= set(SECTIONS):
        sys.exit(f"usage: kernels.py ACCELERATOR FILE [{' | '.join(SECTIONS)}]...")
    names = sys.argv[3:] or list(SECTIONS)
    if "sustained" in names and importlib.util.find_spec("pynvml") is None:
        sys.exit("`sustained` needs pynvml: pip install nvidia-ml-py, or name the other sections")
    rows = Rows(sys.argv[1], sys.argv[2])
    for name in names:
        begun = time.time()
        SECTIONS[name](rows)
        torch.cuda.empty_cache()
        print(f"{name}: {time.time() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
