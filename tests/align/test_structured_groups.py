"""Groups with blocks and parts: what they allow, what they do to tensors, and how they are solved."""

import dataclasses
import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structured_zoo import ATTENTION, FIXED_BLOCKS, NETS, PACKED, Module, Net, num_permutations, relative_error
from torch import Tensor

from dimat.align import Axis, Group, PermutationSpec
from dimat.align.units import BLOCKS, misfit, permute_axis, unit_rows
from dimat.errors import AlignmentError, SchemaError

SEEDS = st.integers(0, 2**31)
some_net = pytest.mark.parametrize("net", NETS.values(), ids=NETS)


def moving(net: Net) -> dict[str, Tensor]:
    """Random permutations that move something on every level of every group."""
    for seed in range(1000):
        perms = net.spec.random(seed)
        if all(all(levels(group, perms[group.name])) for group in net.groups):
            return perms
    raise AssertionError("some level never moves")


def levels(group: Group, perm: Tensor) -> list[bool]:
    """Whether the blocks move, and the units of each part inside of some block."""
    blocks = group.order_of_blocks(perm)
    here = torch.arange(len(blocks))
    within = [group.order_within(perm, part) for part in range(len(group.parts))]
    moved = [not torch.equal(order, torch.arange(order.shape[1]).expand_as(order)) for order in within]
    return moved if group.structure == "blocks" else [not torch.equal(blocks, here), *moved]


# ---- functions stay as they are


@some_net
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_any_permutation_leaves_the_function_as_it_is(net: Net, seed: int) -> None:
    state, x = net.state(seed), net.x(seed)
    permuted = net.spec.apply(state, net.spec.random(seed))
    assert relative_error(net.function(permuted, x), net.function(state, x)) <= 1e-12


@some_net
def test_every_level_moves_and_moves_the_weights(net: Net) -> None:
    state, perms = net.state(), moving(net)
    permuted = net.spec.apply(state, perms)
    assert all(not torch.equal(permuted[name], tensor) for name, tensor in state.items() if name in net.spec.members)
    assert relative_error(net.function(permuted, net.x()), net.function(state, net.x())) <= 1e-12


@some_net
def test_every_axis_is_needed(net: Net) -> None:
    """So that the test above proves each of them."""
    state, x, perms = net.state(), net.x(), moving(net)
    for g, group in enumerate(net.groups):
        for axis in group.axes:
            left = tuple(other for other in group.axes if other != axis)
            lacking = (*net.groups[:g], dataclasses.replace(group, axes=left), *net.groups[g + 1 :])
            permuted = PermutationSpec(lacking).apply(state, perms)
            assert relative_error(net.function(permuted, x), net.function(state, x)) > 1e-4, axis


@some_net
@pytest.mark.parametrize(
    "change", [{"start": 0}, {"block": 1}, {"rest": ()}, {"outer": None}, {"part": BLOCKS, "outer": None}], ids=str
)
def test_every_field_of_an_axis_is_needed(net: Net, change: dict[str, object]) -> None:
    state, x, perms = net.state(), net.x(), moving(net)
    for g, group in enumerate(net.groups):
        for a, axis in enumerate(group.axes):
            if any(key == "rest" and (axis.rest or ()) == value for key, value in change.items()):
                continue
            wrong = dataclasses.replace(axis, **change)
            if wrong == axis or (change == {"block": 1} and axis.rest is None and axis.part == BLOCKS):
                continue  # the second: a block of one and `repeat`, a shape that has another meaning of its own
            axes = (*group.axes[:a], wrong, *group.axes[a + 1 :])
            spec = PermutationSpec((*net.groups[:g], dataclasses.replace(group, axes=axes), *net.groups[g + 1 :]))
            try:
                permuted = spec.apply(state, perms)
            except SchemaError as error:
                assert axis.tensor in str(error)
            else:
                assert relative_error(net.function(permuted, x), net.function(state, x)) > 1e-4, (axis, wrong)


@some_net
@settings(max_examples=10, deadline=None)
@given(one=SEEDS, two=SEEDS)
def test_compose_and_invert_are_those_of_apply(net: Net, one: int, two: int) -> None:
    spec, state = net.spec, net.state()
    first, then = spec.random(one), spec.random(two)
    both = spec.apply(spec.apply(state, first), then)
    at_once = spec.apply(state, spec.compose(first, then))
    back = spec.apply(spec.apply(state, first), spec.invert(first))
    for name, tensor in state.items():
        assert torch.equal(both[name], at_once[name])
        assert torch.equal(back[name], tensor)
    assert spec.moved(spec.compose(first, spec.invert(first))) == 0


@some_net
def test_verify_proves_every_level(net: Net) -> None:
    """An axis that only few draws would prove wrong is found by each of them."""
    module = Module(net, net.state())
    assert net.spec.verify(module, net.x(), tolerance=1e-12) <= 1e-12
    for group in net.groups:
        for axis in group.axes:
            lacking = dataclasses.replace(group, axes=tuple(other for other in group.axes if other != axis))
            spec = PermutationSpec(tuple(lacking if one is group else one for one in net.groups))
            for seed in range(3):
                with pytest.raises(AlignmentError, match=repr(group.name)):
                    spec.verify(module, net.x(), seed=seed)


# ---- the permutations


@pytest.mark.parametrize("structure", ["heads", "blocks"])
def test_random_draws_every_permutation_that_is_allowed_and_no_other(structure: str) -> None:
    group = Group("g", 6, (), structure=structure, parts=(1, 2))
    spec = PermutationSpec((group,))
    drawn = {tuple(spec.random(seed)["g"].tolist()) for seed in range(200)}
    # By hand: two blocks of one and two units, {0 | 1, 2} and {3 | 4, 5}.
    pairs = [[0, 1, 2], [0, 2, 1]], [[3, 4, 5], [3, 5, 4]]
    allowed = {(*a, *b) for a, b in itertools.product(*pairs)}
    if structure == "heads":
        allowed |= {(*b, *a) for a, b in itertools.product(*pairs)}
    assert drawn == allowed
    assert len(drawn) == num_permutations(group)
    for perm in itertools.permutations(range(6)):
        assert (group.torn(torch.tensor(perm)) is None) == (perm in allowed)


@settings(max_examples=50, deadline=None)
@given(data=st.data(), num=st.integers(1, 4), parts=st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_a_permutation_is_the_order_of_blocks_and_the_order_within(
    data: st.DataObject, num: int, parts: list[int]
) -> None:
    group = Group("g", num * sum(parts), (), structure="heads", parts=tuple(parts))
    blocks = torch.tensor(data.draw(st.permutations(range(num))))
    within = [torch.tensor([data.draw(st.permutations(range(part))) for _ in range(num)]) for part in parts]
    perm = group.joined(blocks, within)
    assert group.torn(perm) is None
    assert torch.equal(group.order_of_blocks(perm), blocks)
    assert all(torch.equal(group.order_within(perm, part), order) for part, order in enumerate(within))
    units = [(b, part, u) for b in range(num) for part, size in enumerate(parts) for u in range(size)]
    for place, old in enumerate(perm.tolist()):
        b, part, u = units[place]
        assert units[old] == (blocks[b], part, within[part][b, u])


def test_torn_blocks_and_moved_blocks_are_refused_with_a_reason() -> None:
    spec, state = ATTENTION.spec, ATTENTION.state()
    units = list(range(18))
    cases = {
        (0, 6): "place 0 would get units of blocks 0 and 1",
        (12, 13, 14, 15, 16, 17, 0): "place 0 would get units of blocks 0 and 2",
        (7, 9): "in place 1 units would leave their part",
    }
    for swapped, reason in cases.items():
        perm = list(units)
        for old, new in zip(swapped, (*swapped[1:], swapped[0]), strict=True):
            perm[old] = new
        with pytest.raises(AlignmentError, match=rf"'q:0'.*3 blocks with parts of 2 \+ 4 units.*{reason}"):
            spec.apply(state, {"q:0": torch.tensor(perm)})
    with pytest.raises(AlignmentError, match=r"'w:0'.*which stay where they are, and place 0 would get block 1"):
        FIXED_BLOCKS.spec.invert({"w:0": torch.arange(8).roll(4)})
    with pytest.raises(AlignmentError, match="takes a permutation of 18 units"):
        spec.apply(state, {"q:0": torch.zeros(18)})


# ---- words


@some_net
def test_json_round_trip(net: Net) -> None:
    again = PermutationSpec.from_json(net.spec.to_json())
    assert again == net.spec
    assert again.fingerprint == net.spec.fingerprint
    perms = moving(net)
    one, two = (spec.apply(net.state(), perms) for spec in (again, net.spec))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_fingerprint_differs_with_every_field() -> None:
    group = PACKED.groups[0]
    axis = next(axis for axis in group.axes if axis.part == 1 and axis.start)
    changes = [{"block": 2}, {"start": 0}, {"rest": ((2, 1),)}, {"part": 0}, {"outer": (0, 2)}, {"dimension": 1}]
    specs = [
        PermutationSpec((dataclasses.replace(group, axes=(dataclasses.replace(axis, **change),)),))
        for change in [{}, *changes]
    ]
    specs += [
        PermutationSpec((dataclasses.replace(group, axes=(axis,), **change),))
        for change in ({"structure": "blocks"}, {"parts": (2, 6)}, {"size": 48}, {"name": "in:1"})
    ]
    assert len({spec.fingerprint for spec in specs}) == len(specs)


def test_print_says_what_is_inside_of_a_group() -> None:
    lines = str(ATTENTION.spec).splitlines()
    assert lines[0] == "2 groups, 25 units, 100.0% of 227 parameters can move"
    assert lines[1] == "  q:0      18 units (3 movable blocks of 2 + 4) in 6 tensors, 0 taps"
    assert lines[2] == "  o:0       7 units in 2 tensors, 0 taps"
    assert "8 units (2 fixed blocks of 4) in 3 tensors" in str(FIXED_BLOCKS.spec)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"structure": "heads", "parts": []}, "a plain group has no parts"),
        ({"structure": "plain"}, "a plain group has no parts"),
        ({"size": 7}, "blocks of parts"),
        ({"size": 0}, "blocks of parts"),
        ({"parts": [-1, 5]}, "blocks of parts"),
        ({"structure": "head"}, "unknown structure 'head'. Did you mean 'heads'"),
        ({"axes": [["w", 0, 1, 0, [], 2, [0, 4]]]}, "part 2.*the parts are"),
        ({"axes": [["w", 0, 1, 0, [], 0]]}, "outer None.*needs `outer`"),
        ({"axes": [["w", 0, 1, 0, [], 0, [0, 4], 5]]}, "not a permutation spec"),
    ],
)
def test_a_group_that_contradicts_itself_is_refused(change: dict[str, object], reason: str) -> None:
    entry = {"name": "g", "size": 8, "structure": "heads", "parts": [1, 3], "axes": [["w", 0, 4]]}
    assert PermutationSpec.from_json(json.dumps({"groups": [entry]})).groups[0].num_blocks == 2
    with pytest.raises(AlignmentError, match=reason):
        PermutationSpec.from_json(json.dumps({"groups": [entry | change]}))


@pytest.mark.parametrize(
    ("axis", "reason"),
    [
        (Axis("w", 2), "no dimension 2"),
        (Axis("w", 0, 5), "12 entries, no multiple of 2 x 5"),
        (Axis("w", 0, 6, 1), "start of 1 needs `rest`"),
        (Axis("w", 0, 6, 1, ((6, 1),)), "12 entries, the units go up to entry 12"),
        (Axis("w", 0, 1, 0, (), 3, (0, 6)), "no part 3"),
        (Axis("w", 0, 1, 0, (), 1), "part 1 needs `outer`"),
        (Axis("w", 0, 1, 0, (), 1, (0, 10)), "12 entries, the units go up to entry 12"),
        (Axis("w", 0, 1, 0, (), 1, (2, 6)), "no dimension 2"),
        (Axis("w", 1, 1, 0, (), 1, (0, 5)), "12 entries, no multiple of 2 x 5"),
        (Axis("w", 1, 1, 3, (), 1, (0, 6)), "5 entries, the units go up to entry 5"),
    ],
)
def test_a_tensor_that_cannot_hold_the_units_is_refused(axis: Axis, reason: str) -> None:
    spec = PermutationSpec((Group("g", 8, (axis,), structure="heads", parts=(1, 3)),))
    for apply in (spec.apply, spec.apply_to_named):
        with pytest.raises(SchemaError, match=rf"'w' of shape \(12, 5\) cannot hold group 'g'.*{reason}"):
            apply({"w": torch.zeros(12, 5)}, {})


# ---- places in tensors, against reshaping


@st.composite
def layouts(draw: st.DrawFn, part: bool) -> tuple[Group, Axis, tuple[list[str], ...], dict[str, int], tuple[int, int]]:
    """A tensor whose dimensions are products of factors: blocks `B`, units of the part `P`, others.

    Also how many entries stand before and after the factors of the axis' dimension.
    """
    num_dimensions = draw(st.integers(1, 3))
    names = ["B", *(["P"] if part else []), *(f"other{i}" for i in range(draw(st.integers(0, 3))))]
    sizes = {name: draw(st.integers(2, 3)) for name in names}
    dims: tuple[list[str], ...] = tuple([] for _ in range(num_dimensions))
    for name in draw(st.permutations(names)):
        dims[draw(st.integers(0, num_dimensions - 1))].append(name)
    where = {name: d for d, dim in enumerate(dims) for name in dim}
    strides = {name: math.prod(sizes[n] for n in dim[i + 1 :]) for dim in dims for i, name in enumerate(dim)}
    own = "P" if part else "B"
    whole = not part and draw(st.booleans())
    pad = (0, 0) if whole else (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    loops = tuple((sizes[n], strides[n]) for n in draw(st.permutations(dims[where[own]])) if n not in ("B", "P"))
    rest = None if whole else loops
    if not part:
        group = Group("g", sizes["B"], ())
        return group, Axis("t", where["B"], strides["B"], pad[0], rest), dims, sizes, pad
    group = Group("g", sizes["B"] * (sizes["P"] + 1), (), structure="heads", parts=(1, sizes["P"]))
    outer = (where["B"], strides["B"])
    return group, Axis("t", where["P"], strides["P"], pad[0], rest, 1, outer), dims, sizes, pad


def factored(tensor: Tensor, axis: Axis, dims: tuple[list[str], ...], sizes: dict[str, int], pad: tuple[int, int],
             part: bool) -> Tensor:  # fmt: skip
    """The oracle: the tensor without its padding, blocks (and units) as the first dimensions, one for each factor."""
    core = tensor.narrow(axis.dimension, pad[0], tensor.shape[axis.dimension] - sum(pad))
    names = [name for dim in dims for name in dim]
    return core.reshape([sizes[name] for name in names]).movedim(
        [names.index(name) for name in (["B", "P"] if part else ["B"])], [0, 1] if part else [0]
    )


@pytest.mark.parametrize("part", [False, True])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_places_mean_what_reshaping_says(part: bool, data: st.DataObject) -> None:
    group, axis, dims, sizes, pad = data.draw(layouts(part))
    shape = [math.prod(sizes[name] for name in dim) for dim in dims]
    shape[axis.dimension] += sum(pad)
    tensor = torch.arange(math.prod(shape)).view(shape)
    assert misfit(axis.place, group, shape) is None
    expected = factored(tensor, axis, dims, sizes, pad, part)
    rows = unit_rows(tensor, axis.place, group)
    flat = expected.reshape(rows.shape[0], -1)
    # All entries differ, so the first row tells which column is which.
    assert torch.equal(rows[:, rows[0].argsort()], flat[:, flat[0].argsort()])
    perm = PermutationSpec((group,)).random(data.draw(SEEDS))["g"]
    moved = permute_axis(tensor, axis, group, perm)
    found = factored(moved, axis, dims, sizes, pad, part)
    if part:
        order = group.order_within(perm, 1)
        assert all(
            torch.equal(found[b, u], expected[b, order[b, u]]) for b in range(sizes["B"]) for u in range(sizes["P"])
        )
    else:
        assert torch.equal(found, expected[perm])
    before, after = (t.movedim(axis.dimension, 0) for t in (tensor, moved))
    assert torch.equal(before[: pad[0]], after[: pad[0]])
    assert torch.equal(before[len(before) - pad[1] :], after[len(before) - pad[1] :])
