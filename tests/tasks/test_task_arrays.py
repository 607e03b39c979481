from __future__ import annotations

import zipfile

import numpy as np
import pytest
import torch

from dimat.errors import TaskError
from dimat.tasks import load_task
from dimat.tasks.archive import read_archive


def arrays(shape=(6, 5), dtype="uint8", num_train=40, num_test=20, num_classes=4):
    random = np.random.default_rng(0)

    def samples(number: int) -> np.ndarray:
        return (random.random((number, *shape)) * 255).astype(dtype)

    return {
        "x_train": samples(num_train),
        "y_train": np.arange(num_train) % num_classes,
        "x_test": samples(num_test),
        "y_test": np.arange(num_test) % num_classes,
    }


@pytest.fixture
def save(tmp_path):
    def write(content: dict[str, np.ndarray], name: str = "data.npz"):
        np.savez(tmp_path / name, **content)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("shape", "dtype", "kind", "expected_kind", "expected_shape"),
    [
        ((6, 5), "uint8", None, "images", (1, 6, 5)),
        ((6, 5), "float32", None, "series", (6, 5)),
        ((6, 5), "float16", None, "series", (6, 5)),
        ((6, 5), "float64", "images", "images", (1, 6, 5)),
        ((6, 5), "uint8", "series", "series", (6, 5)),
        ((6, 5, 3), "uint8", None, "images", (3, 6, 5)),
        ((3, 5, 5), "uint8", "images", "images", (5, 3, 5)),
        ((9,), "float32", None, "table", (9,)),
        ((9,), "uint8", None, "table", (9,)),
    ],
)
def test_shapes_and_dtypes_tell_kinds_apart(save, shape, dtype, kind, expected_kind, expected_shape) -> None:
    content = arrays(shape, dtype)
    archive = read_archive(save(content), kind=kind)
    assert archive.kind == expected_kind
    assert tuple(archive.x_train.shape) == (40, *expected_shape)
    assert archive.x_train.dtype == {"uint8": torch.uint8, "float16": torch.float16}.get(dtype, torch.float32)
    if expected_kind == "images" and len(shape) == 3:
        content["x_train"] = np.moveaxis(content["x_train"], -1, 1)
    assert np.array_equal(
        archive.x_train.numpy().reshape(-1), content["x_train"].reshape(-1).astype(archive.x_train.numpy().dtype)
    )
    assert archive.y_test.tolist() == content["y_test"].tolist()


def first_batch(task) -> torch.Tensor:
    return torch.cat([x for x, _ in task.data(0, 1, 0)])


def test_bytes_of_images_go_to_minus_one_to_one(save) -> None:
    content = arrays()
    content["x_train"][0], content["x_train"][1] = 0, 255
    x = first_batch(load_task("arrays", data=str(save(content))))
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1, 1)


@pytest.mark.parametrize(("shape", "dtype"), [((9,), "uint8"), ((9,), "float64"), ((3, 7), "float16")])
def test_tables_and_series_are_standardised(save, shape, dtype) -> None:
    x = first_batch(load_task("arrays", data=str(save(arrays(shape, dtype))), model="mlp"))
    others = [0, *range(2, x.dim())]
    torch.testing.assert_close(x.mean(others), torch.zeros(shape[0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std(others, correction=0), torch.ones(shape[0]), atol=1e-3, rtol=0)


def test_scale_none_keeps_the_numbers_and_unit_needs_bytes(save) -> None:
    content = arrays((9,), "float32")
    path = str(save(content))
    x = first_batch(load_task("arrays", data=path, model="mlp", options={"scale": "none"}))
    assert sorted(x[:, 0].tolist()) == sorted(content["x_train"][:, 0].tolist())
    with pytest.raises(TaskError, match=r"holds torch\.float32"):
        load_task("arrays", data=path, model="mlp", options={"scale": "unit"}).model()
    with pytest.raises(TaskError, match="Did you mean 'standard'"):
        load_task("arrays", data=path, options={"scale": "standart"})


def test_limits_keep_the_classes_even(save) -> None:
    path = str(save(arrays((9,), num_train=400, num_test=100)))
    task = load_task("arrays", data=path, model="mlp", options={"train_limit": 20, "test_limit": 8})
    task.data(0, 1, 0)
    assert task.labels() == {"0": 5, "1": 5, "2": 5, "3": 5}
    assert len(task.dataset().y_test) == 8
    with pytest.raises(TaskError, match="train_limit is a whole number"):
        load_task("arrays", data=path, options={"train_limit": 0})


def test_a_column_of_the_file_parts_the_data_also_under_a_limit(save) -> None:
    content = arrays((9,)) | {"person": np.repeat(["ann", "bob"], 20)}
    content["x_train"][:20], content["x_train"][20:] = 1, 2
    for limit in (None, 12):
        task = load_task(
            "arrays",
            data=str(save(content)),
            model="mlp",
            partition={"scheme": "column", "column": "person"},
            options={"train_limit": limit, "scale": "none"},
        )
        values = [torch.cat([x for x, _ in task.data(agent, 2, 0)]).unique().tolist() for agent in range(2)]
        assert values in ([[1], [2]], [[2], [1]])
        assert values[0] != values[1]


def test_names_of_classes_show_in_the_histogram(save) -> None:
    task = load_task("arrays", data=str(save(arrays((9,)) | {"class_names": np.array(list("abcde"))})), model="mlp")
    task.data(0, 2, 0)
    assert task.labels() == {"a": 5, "b": 5, "c": 5, "d": 5, "e": 0}
    assert task.model().head.out_features == 5


def test_a_file_that_was_rewritten_is_read_again(save) -> None:
    path = str(save(arrays((9,))))
    assert load_task("arrays", data=path, model="mlp").dataset().input_shape == (9,)
    first = load_task("arrays", data=path, model="mlp").dataset()
    assert load_task("arrays", data=path, model="mlp").dataset() is first
    save(arrays((11,)))
    assert load_task("arrays", data=path, model="mlp").dataset().input_shape == (11,)


def changed(name: str, make):
    return lambda content: content | {name: make(content[name])}


def with_value(position, value):
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[position] = value
        return array

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: {k: v for k, v in c.items() if k != "y_test"},
            r"no array y_test; .*it holds x_test, x_train, y_train",
        ),
        (changed("y_train", lambda y: y[:-1]), r"y_train has shape \(39,\), expected one label per sample.*\(40,\)"),
        (changed("y_train", lambda y: y[:, None]), r"y_train has shape \(40, 1\)"),
        (changed("y_train", lambda y: y.astype(float)), "y_train is float64, expected whole numbers"),
        (changed("y_train", with_value(3, -1)), "y_train has the label -1 at index 3"),
        (changed("y_test", with_value(7, 4)), "y_test has the label 4 at index 7, expected below 4"),
        (changed("y_train", with_value(0, 1000)), "y_train has the label 1000 among 40 samples"),
        (changed("y_train", lambda y: y * 0), "one label only"),
        (
            changed("x_train", with_value((2, 1), np.nan)),
            r"x_train has 1 values that are NaN or Inf, the first at \(2, 1\)",
        ),
        (changed("x_test", with_value((0, 0), np.inf)), "x_test has 1 values"),
        (changed("x_test", lambda x: x[:, :5]), r"samples of x_train have shape \(9,\), those of x_test \(5,\)"),
        (changed("x_test", lambda x: x.astype("uint8")), "x_train is float32 and x_test uint8"),
        (changed("x_train", lambda x: x.astype("int64")), "x_train is int64, expected uint8, float16"),
        (changed("x_train", lambda x: x.astype("complex64")), "x_train is complex64"),
        (changed("x_train", lambda x: x[:, 0]), r"x_train has shape \(40,\), expected images"),
        (changed("x_train", lambda x: x[:0]), r"x_train has shape \(0, 9\)"),
        (changed("x_test", lambda x: x.astype("float64") * 1e300), "x_test has .* values that are NaN or Inf"),
        (changed("y_train", lambda y: y.astype(object)), "y_train holds Python objects, which only pickle"),
        (lambda c: c | {"class_names": np.array(["a", "b"])}, "label 3, class_names has only 2 names"),
    ],
)
def test_wrong_arrays_are_named_with_what_was_expected(save, change, message) -> None:
    path = save(change(arrays((9,), "float32")))
    with pytest.raises(TaskError, match=message) as caught:
        load_task("arrays", data=str(path), model="mlp").model()
    assert str(path) in str(caught.value)


def test_channels_first_images_are_recognised(save) -> None:
    with pytest.raises(TaskError, match="looks like") as caught:
        read_archive(save(arrays((3, 8, 8))))
    assert "transpose" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        ("imges", (9,), "Did you mean 'images'"),
        ("images", (9,), "expected"),
        ("table", (6, 5), r"expected \(N, features\)"),
    ],
)
def test_a_kind_that_does_not_fit_is_refused(save, kind, shape, message) -> None:
    with pytest.raises(TaskError, match=message):
        read_archive(save(arrays(shape)), kind=kind)


def test_a_missing_file_names_its_neighbours(save) -> None:
    path = save(arrays(), "mnist.npz")
    with pytest.raises(TaskError, match=r"does not exist\. Did you mean 'mnist.npz'"):
        read_archive(path.with_name("mnst.npz"))
    with pytest.raises(TaskError, match=r"does not exist\. Beside it: mnist.npz"):
        read_archive(path.with_name("zzzzz"))
    with pytest.raises(TaskError, match="is a folder"):
        read_archive(path.parent)
    with pytest.raises(TaskError, match=r"needs the path of an \.npz file"):
        load_task("arrays")
    with pytest.raises(TaskError, match="no array person") as caught:
        read_archive(save(arrays() | {"persons": np.zeros(40)}), column="person")
    assert "'persons'" in str(caught.value.hint)


def test_a_damaged_file_is_refused_wherever_it_is_cut_or_changed(save) -> None:
    path = save(arrays((9,)))
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for position in [0, 10, len(whole) // 2, len(whole) - 30]:
        path.write_bytes(whole[:position])
        with pytest.raises(TaskError, match=r"no \.npz archive|damaged"):
            read_archive(path)
    for position in random.integers(0, len(whole), 60):
        mangled = bytearray(whole)
        mangled[position] ^= 0xFF
        path.write_bytes(mangled)
        try:
            read_archive(path)
        except TaskError:
            refused += 1
    assert refused > 40  # bytes of no meaning (timestamps, attributes) may change without harm


def test_what_is_no_archive_of_arrays_is_refused(tmp_path) -> None:
    path = tmp_path / "data.npz"
    np.save(path.with_suffix(".npy"), np.zeros(3))
    path.write_bytes(path.with_suffix(".npy").read_bytes())
    with pytest.raises(TaskError, match=r"no \.npz archive"):
        read_archive(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(name, b"text")
    with pytest.raises(TaskError, match=r"holds x_test|is no array"):
        read_archive(path)


def flat(input_shape: tuple[int, ...], num_classes: int) -> torch.nn.Module:
    """A user's model that takes `view` of what its convolution makes."""

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(input_shape[0], 4, 3, padding=1)
            self.head = torch.nn.Linear(4 * input_shape[1] * input_shape[2], num_classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            convolved = self.conv(x)
            logits: torch.Tensor = self.head(convolved.view(len(convolved), -1))
            return logits

    return Flat()


NARROW = {"name": "resnet20", "width": 0.5}
"""A shortcut reads eight channels, fewer than the gradient of a 1x1 convolution with a stride takes on any CPU."""


@pytest.mark.parametrize("model", ["cnn", "resnet20", NARROW, f"{__file__}:flat"])
def test_images_have_their_channels_last_for_dimats_own_models_alone(save, model: str | dict[str, object]) -> None:
    state = torch.get_rng_state()
    task = load_task("arrays", data=save(arrays(shape=(4, 5, 3))), model=model)
    loader = task.data(0, 2, seed=0)
    read = [*(x for x, _ in loader), *(x for x, _ in task.test_batches()), *task.probe(), *task.shared_probe()]
    assert len(read) >= 4
    assert all(x.stride() == ((60, 1, 15, 3) if model in ("cnn", "resnet20") else (60, 20, 5, 1)) for x in read)
    assert torch.equal(torch.get_rng_state(), state), "to look at a model draws nothing"
    x, _ = next(task.test_batches())
    assert torch.equal(x, task.dataset().scaling.apply(task.dataset().x_test))
    task.evaluate(task.model())
