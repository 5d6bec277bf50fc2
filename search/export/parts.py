"""The text that some exported optimizers need and others do not: what goes into the slots.

A rule may keep states, count steps, read a Hessian, or look at whole tensors or the whole model.
"""

CREATE_STATES = """\
    for name in STATES:
        state[name] = torch.zeros_like(p, dtype=_working_dtype(p))
"""
CREATE_STEP = """\
    device = p.device if group["capturable"] else "cpu"
    state["step"] = torch.zeros((), dtype=torch.float32, device=device)
"""
COLLECT = """\
state = self.state[p]
if not state:
{create}
for column, name in zip(columns, COLUMNS, strict=True):
    column.append(state[name])
"""
COLLECT_NOTHING = "self.state.setdefault(p, {})  # nothing to remember, of all that were moved"
CURVATURE = '''\
def set_hessian(self, loss: Tensor, generator: torch.Generator | None = None) -> None:
    """Estimate the diagonal of the Hessian of ``loss``: before ``loss.backward()``, unscaled.

    The rule needs it before its first step, and keeps it until the next call, which may come
    every few steps. Hutchinson's estimate: z * (H z) with random signs z. Processes that train
    together should average ``state[p]["hessian"]``, each having seen its own part of the batch.
    """
    groups = {p: group for group in self.param_groups for p in group["params"]}
    params = [p for p in groups if p.requires_grad]
    grads = torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True)
    signs, total = [], 0.0
    for x in _real(grads):
        z = torch.randint(2, x.shape, generator=generator, device=x.device) * 2 - 1
        signs.append(z.to(x.dtype))
        total = total + (x * signs[-1]).sum().to(loss.device)
    products = torch.autograd.grad(total, params, retain_graph=True, materialize_grads=True)
    for p, z, product in zip(params, signs, _real(products), strict=True):
        state, h = self.state[p], z * product
        if not state:
{create}
        h = torch.view_as_complex(h) if p.is_complex() else h.view_as(p)
        state["hessian"] = h.to(_working_dtype(p))
'''
BEGINS = """\
if self._only_begins():
    return loss
"""
ONLY_BEGINS = '''\
def _only_begins(self) -> bool:
    """Make the states, and no step, where nothing can move: at a learning rate of zero, without
    gradients. Distributed checkpoints ask for states so; Hessians are NaN until they are known."""
    if self.state or any(float(group["lr"]) != 0 for group in self.param_groups):
        return False
    groups = {p: group for group in self.param_groups for p in group["params"]}
    groups = {p: group for p, group in groups.items() if p.grad is not None}
    if any(bool((p.grad != 0).any()) for p in groups):
        return False
    for p in groups:
        state = self.state[p]
{create}
        state["hessian"] = torch.full_like(p, float("nan"), dtype=_working_dtype(p))
    return True
'''
MISSING = """\
    raise RuntimeError("the rule reads a Hessian: call set_hessian(loss) before step()")
"""
FLIP = "columns[-1] = [-h for h in columns[-1]]"
TICK = """\
*columns, steps = columns
torch._foreach_add_(steps, 1)
if group["capturable"] or torch.compiler.is_compiling():
    steps = [_wide(step) for step in steps]
else:
    steps = [step.item() for step in steps]
"""

LOCAL = """\
for i, p in enumerate(params):
    if hasattr(p, "to_local"):  # sharded; the rule is elementwise, so the shard here will do
        grads[i] = grads[i].redistribute(p.device_mesh, p.placements)
params, grads, *columns = (
    [x.to_local() if hasattr(x, "to_local") else x for x in tensors]
    for tensors in (params, grads, *columns)
)
"""
SHARDED = """\
if any(hasattr(p, "to_local") for p in params):
    return False  # few multi-tensor functions, and no flat views, are known to sharded tensors
"""

UPDATE_GROUPS = """\
for group in self.param_groups:
    params, grads, columns = [], [], [[] for _ in COLUMNS]
    self._init_group(group, params, grads, *columns)
    if not params:
        continue
    lists = _prepare(group, params, grads, *columns)
    hyper = {name: {number} for name in HYPER}
    if _wants_fused(group, params):
        lists = _fused(*lists, **hyper)
    if not _wants_foreach(group, params):
        _loop(*lists, **hyper)
        continue
    for part in _alike(*lists):
        whole = part[0][0].device.type != "cpu" or torch.compiler.is_compiling()
        for piece in [part] if whole else _pieces(*part):
            _foreach(*piece, **hyper)
"""
UPDATE_MODEL = """\
lists = [[] for _ in ("params", "grads", *COLUMNS)]
hyper = {name: [] for name in HYPER}
foreach = fused = True
for group in self.param_groups:
    params, grads, columns = [], [], [[] for _ in COLUMNS]
    self._init_group(group, params, grads, *columns)
    if not params:
        continue
    for whole, part in zip(lists, _prepare(group, params, grads, *columns), strict=True):
        whole.extend(part)
    for name in HYPER:
        hyper[name] += [{number}] * len(params)
    foreach = foreach and _wants_foreach(group, params)
    fused = fused and _wants_fused(group, params)
if not lists[0]:
    return
if fused:
    _fused(*lists, **hyper)
elif foreach and len(_alike(*lists)) == 1:
    _foreach(*lists, **hyper)
else:
    _loop(*lists, **hyper)
"""
TOGETHER = "TOGETHER = 16, 4, 1  # parameters in a compiled call, as calls are dear"
FUSED = '''\
def _fused(*lists: list, **hyper: Any) -> list[list]:
    """``_loop`` as one pass over memory a parameter; returns the lists of those too small for it.

    Each number of parameters in ``TOGETHER`` is compiled once for all shapes, and all numbers but
    hyper-parameters.
    """
    rows = [*zip(*lists, strict=True)]
    small = [row for row in rows if row[0].numel() < BLOCK]
    large = [row for row in rows if row[0].numel() >= BLOCK]
    for name in {"lr", "weight_decay"} & hyper.keys():
        hyper[name] = _tensor(hyper[name])
    batches: dict[Any, list] = {}  # by what else a compiler tells apart
    constants: dict[str, float] = {}

    def move(*given: Any, **fixed: float) -> None:
        args = [_tensor(x) for x in given]
{args}
        p, starts = args[0], tuple(x.storage_offset() == 0 for x in args)
        batches.setdefault((p.dtype, p.device, p.ndim, starts), []).append(args)
        constants.update(fixed)

    _loop(*([row[i] for row in large] for i in range(len(lists))), **hyper, move=move)
    for calls in batches.values():
        while calls:
            count = next(n for n in TOGETHER if n <= len(calls))
            _compiled(_move_all)(calls[:count], **constants)
            del calls[:count]
    torch.autograd.graph.increment_version([row[0] for row in large])
    return [[row[i] for row in small] for i in range(len(lists))]


def _move_all(calls: list, **constants: float) -> None:
    for args in calls:
        _move(*args, **constants)
'''
FLAT = """\
        flat = all(x.is_contiguous() for x in args)
        args = [_flat(x) if flat and x.ndim else x.detach() for x in args]"""
SHAPED = "        args = [x.detach() for x in args]"
FLATTEN = '''\


def _flat(x: Tensor) -> Tensor:
    """The same memory. A view would remember the shape, and all shapes would be compiled."""
    return x.new_empty(0).set_(x.untyped_storage(), x.storage_offset(), (x.numel(),))
'''
FUSED_MODEL = '''\
def _fused(*lists: list, **hyper: list) -> None:
    """``_loop`` as few passes over memory. It is compiled for these shapes, and all numbers but
    hyper-parameters."""
    for name in {"lr", "weight_decay"} & hyper.keys():
        hyper[name] = [_tensor(x) for x in hyper[name]]
    columns = [[_tensor(x) for x in column] for column in lists]
    _compiled(_loop)(*columns, **hyper)
'''
COMPILED = """


def _tensor(x: float | Tensor) -> Tensor:
    return x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64, device="cpu")


@cache
def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    compiled = torch.compile(function, dynamic={dynamic})

    # Sizes may be equal by chance and then differ; and 8 versions, the default, are soon reached.
    sizes = torch.fx.experimental._config.patch(use_duck_shape=False)
    versions = torch._dynamo.config.patch(recompile_limit=64)

    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with sizes, versions:
                compiled(*args, **kwargs)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            needs = "a C++ compiler for a CPU, Triton for a GPU, no parameters that overlap"
            raise RuntimeError(f"fused: torch.compile failed, it needs {{needs}}") from error

    return run
"""
BLOCK = (
    "BLOCK = 2**16  # numbers at a time on a CPU, whose cache holds all that a step needs of them"
)
PIECES = '''\
def _pieces(params: list, *columns: list) -> Iterator[list[list]]:
    """The lists in pieces of at most BLOCK numbers, or one tensor."""
    rows, size = [], 0
    for row in {rows}:
        if rows and size + row[0].numel() > BLOCK:
            yield [list(column) for column in zip(*rows, strict=True)]
            rows, size = [], 0
        rows.append(row)
        size += row[0].numel()
    yield [list(column) for column in zip(*rows, strict=True)]
'''
ROWS = "zip(params, *columns, strict=True)"
CUT_ROWS = "(part for whole in zip(params, *columns, strict=True) for part in _cut(whole))"
CUT = '''\


def _cut(row: tuple) -> Iterable[tuple]:
    """A parameter and what belongs to it; a large one in parts, as views."""
    size, shape = row[0].numel(), row[0].shape
    if size <= BLOCK or not all(x.is_contiguous() for x in row if isinstance(x, Tensor)):
        return [row]
    count = -(-size // BLOCK)
    columns = []
    for x in row:  # steps are one number for the whole of it
        is_alike = isinstance(x, Tensor) and x.shape == shape
        columns.append(x.view(-1).split(BLOCK) if is_alike else [x] * count)
    return zip(*columns, strict=True)
'''
MODEL_NOTE = """

    Norms and inner products are taken over all parameters of the optimizer that have a gradient,
    as if they were one vector; on parameters sharded by FSDP2 they are those of the whole model,
    under ZeroRedundancyOptimizer only of the process's own share.
"""

WIDE = '''\
def _wide(x: Tensor) -> Tensor:
    """In float64, which holds all squares of float32 and adds up without loss."""
    return x if x.device.type == "mps" else x.double()  # there it has none


'''
NUMBER = '''\
def _number(x: float | Tensor) -> float | Tensor:
    """A hyper-parameter that the formula reads, not to be rounded to float32 on the way."""
    return _wide(x).reshape(()) if isinstance(x, Tensor) else x


'''
SCALAR = '''\
def _scalar(x: float | Tensor) -> Tensor:
    """A number as a tensor, for functions that raise where torch's give infinity or NaN."""
    return _wide(x) if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64, device="cpu")


'''
POWER = '''\
def _power(x: float | Tensor, y: float | Tensor) -> float | Tensor:
    """x ** y, of numbers as of tensors."""
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        return _scalar(x) ** _scalar(y)
    try:
        return x**y if x > 0 else (_scalar(x) ** _scalar(y)).item()
    except OverflowError:
        return float("inf")


'''
NORM = """\
def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(_wide(x)).to(x.dtype)


"""
SUM = '''\
def _sum(xs: list[Tensor], ys: list[Tensor]) -> Tensor:
    """The inner product of two lists, each as one vector, unrounded."""
    terms = [(_wide(x) * _wide(y)).sum() for x, y in zip(xs, ys, strict=True)]
    terms = [x.full_tensor() if hasattr(x, "full_tensor") else x for x in terms]  # sharded
    return torch.stack([x.to(terms[0].device) for x in terms]).sum()


'''
DOT = '''\
def _dot(xs: list[Tensor], ys: list[Tensor]) -> list[Tensor]:
    """A copy of the inner product for every parameter's device."""
    total = _sum(xs, ys)
    return [total.to(x.device, x.dtype) for x in xs]


'''
GLOBAL_NORM = """\
def _global_norm(xs: list[Tensor]) -> list[Tensor]:
    total = _sum(xs, xs).sqrt()
    return [total.to(x.device, x.dtype) for x in xs]


"""
COSINE_SIM = """\
def _cosine_sim(xs: list[Tensor], ys: list[Tensor]) -> list[Tensor]:
    total = _sum(xs, ys) / ((_sum(xs, xs) * _sum(ys, ys)).sqrt() + 1e-8)
    return [total.to(x.device, x.dtype) for x in xs]


"""
CLIP = """\
def _clip_by_global_norm(xs: list[Tensor], limits: list[Any]) -> list[Tensor]:
    norm, clipped = _sum(xs, xs).sqrt(), []
    for x, limit in zip(xs, limits, strict=True):  # norms, not what they clip, may be beyond x's
        scale = (limit / (norm.to(x.device) + 1e-8)).clamp(max=1)
        clipped.append((_wide(x) * scale).to(x.dtype))
    return clipped


"""
BY_MATRIX = '''\
def _by_matrix(function: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Tensor:
    """On tensors as matrices, their first axis by the rest; what has no two axes stays."""
    if x.ndim < 2:
        return x.clone()
    return function(*(y.flatten(1) for y in (x, *others))).reshape(x.shape)
'''
HELPERS = {
    "norm": (NORM,),
    "dot": (SUM, DOT),
    "global_norm": (SUM, GLOBAL_NORM),
    "cosine_sim": (SUM, COSINE_SIM),
    "clip_by_global_norm": (SUM, CLIP),
}
"""What each reduction calls."""
