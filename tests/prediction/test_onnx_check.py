"""A stranger's graph is checked before it runs, and what it cannot compute is one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
from onnx import ModelProto, TensorProto, helper, numpy_helper

from newsdesk.errors import UserError
from newsdesk.files import sha256_of
from newsdesk.prediction import onnx_session
from newsdesk.prediction.onnx_check import GraphRefusedError, Port, require_plain_graph
from newsdesk.prediction.open_model import INPUTS, open_model
from tiny_exports import LABELS, tampered

FILE = "onnx/model_quantized.onnx"
LARGE = 1 << 17  # squared, 64 GB of float32


@pytest.fixture
def model(built):
    """The graph of the export, to be changed."""
    found = ModelProto()
    found.ParseFromString((built / FILE).read_bytes())
    return found


def put(exported: Path, model: ModelProto) -> Path:
    """Make it the export's graph, as a stranger would who seals what they made."""
    (exported / FILE).write_bytes(model.SerializeToString())
    tampered(exported, files={FILE: sha256_of(exported / FILE)})
    return exported


def constant(model, name, values, dtype=np.int64):
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype=dtype), name))
    return name


def after_logits(model, operator, *inputs, **attributes):
    """Let one more operator compute the logits, of ``plain`` ones and of ``inputs``."""
    model.graph.node[-1].output[0] = "plain"
    model.graph.node.append(helper.make_node(operator, ["plain", *inputs], ["logits"], **attributes))


def an_endless_loop(model):
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["x"], body=body))


def a_branch(model):
    inner = helper.make_graph([], "inner", [], [])
    model.graph.node.append(helper.make_node("Identity", ["mask"], ["x"], then_branch=inner))


def a_function(model):
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("mine", "f", ["x"], ["x"], [], opsets))


def an_operator_of_others(model):
    model.graph.node.append(helper.make_node("Run", ["mask"], ["x"], domain="mine"))


def weights_elsewhere(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")


def more_axes_than_bytes(model):
    model.graph.initializer[0].dims[0] = 1 << 40


def a_constant_without_its_bytes(model):
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[1 << 34])
    model.graph.node.append(helper.make_node("Constant", [], ["x"], value=tensor))


def sparse_weights(model):
    model.graph.sparse_initializer.add(dims=[1 << 40])


def texts(model):
    model.graph.initializer.append(helper.make_tensor("t", TensorProto.STRING, [1], [b"x"]))


def a_third_input(model):
    model.graph.input.append(helper.make_tensor_value_info("token_type_ids", TensorProto.INT64, ["b", "s"]))


def another_name_for_an_input(model):
    model.graph.input[0].name = "ids"


def inputs_of_floats(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def inputs_of_a_fixed_length(model):
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1 << 20


def no_logits(model):
    model.graph.output[0].name = "scores"


def logits_of_another_type(model):
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64


def logits_of_another_width(model):
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7


def an_old_opset(model):
    model.opset_import[0].version = 3


def a_newer_opset(model):
    model.opset_import[0].version = 99


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (an_endless_loop, "a graph inside of a node"),
        (a_branch, "a graph inside of a node"),
        (a_function, "functions"),
        (an_operator_of_others, "the operator Run of mine"),
        (weights_elsewhere, "external_data"),
        (more_axes_than_bytes, "does not hold them"),
        (a_constant_without_its_bytes, "does not hold them"),
        (sparse_weights, "sparse_initializer"),
        (texts, "texts for weights"),
        (a_third_input, "inputs input_ids, attention_mask, token_type_ids, where"),
        (another_name_for_an_input, "inputs ids, attention_mask, where"),
        (inputs_of_floats, "input input_ids is not int64"),
        (inputs_of_a_fixed_length, "input input_ids is not int64 of axes (any, any)"),
        (no_logits, "outputs scores, and no logits"),
        (logits_of_another_type, "output logits is not float32"),
        (logits_of_another_width, "has 7 columns, where 3 are expected"),
        (an_old_opset, "opset 3"),
        (a_newer_opset, "opset 99"),
    ],
)
def test_what_no_export_of_an_encoder_has_is_refused_by_name(exported, model, change, found):
    change(model)
    with pytest.raises(UserError, match="is not a graph that newsdesk runs") as refused:
        open_model(put(exported, model))
    assert found in str(refused.value.found)


@pytest.mark.parametrize(
    "content", [b"", b"no graph at all", b"\x00" * 99, b"\xff" * 99, b"\x3a\xff\xff\x03"]
)
def test_what_is_no_graph_is_said_to_be_none(exported, content):
    (exported / FILE).write_bytes(content)
    tampered(exported, files={FILE: sha256_of(exported / FILE)})
    with pytest.raises(UserError, match="is not a graph that newsdesk runs"):
        open_model(exported)


def test_a_graph_cut_off_anywhere_or_with_any_byte_changed_is_refused_or_read(built, tmp_path):
    content = (built / FILE).read_bytes()
    file = tmp_path / "model.onnx"
    for place in range(0, len(content), 7):
        for changed in (content[:place], content[:place] + b"\xff" + content[place + 1 :]):
            file.write_bytes(changed)
            try:
                require_plain_graph(file, INPUTS, {"logits": Port("float32", (None, 3))})
            except GraphRefusedError:
                continue


@pytest.mark.parametrize(
    ("part", "times", "found"),
    [
        (b"\x3a\x04\x0a\x02\x22\x00", 1, "the operator "),
        (b"\x42\x00", 1_000_000, "more than 1,000,000 names"),
        (b"\x3a\x02\x2a\x00", 1_000_000, "does not need|more than|a type that"),
        (b"\x42\xff\xff\x07\x0a\xfb\xff\x07" + bytes(131_067), 1, "a name of 131,067 bytes"),
        (b"\x3a\x80\x02\x2a\xfd\x01\x0a\xfa\x01" + bytes(250), 1, "more than 8 axes"),
    ],
)
def test_a_file_of_many_small_parts_is_read_only_so_far(tmp_path, part, times, found):
    file = tmp_path / "model.onnx"
    file.write_bytes(part * times)
    with pytest.raises(GraphRefusedError) as refused:
        require_plain_graph(file, INPUTS, {})
    assert any(each in str(refused.value) for each in found.split("|"))


def test_a_graph_larger_than_the_limit_is_not_read(built):
    with pytest.raises(GraphRefusedError, match="bytes, where 1 to 100 are expected"):
        require_plain_graph(built / FILE, INPUTS, {}, limit=100)


def test_a_graph_that_onnxruntime_refuses_is_a_sentence_and_no_more(exported, model, capfd):
    cast = model.graph.node[1]
    cast.name = "a name in no encoding"
    del cast.attribute[:]
    content = model.SerializeToString()
    (exported / FILE).write_bytes(content.replace(cast.name.encode(), b"\x9a" * len(cast.name)))
    tampered(exported, files={FILE: sha256_of(exported / FILE)})
    with pytest.raises(UserError, match="onnxruntime cannot run"):
        open_model(exported)
    assert capfd.readouterr() == ("", "")


def of_constants(model):
    after_logits(model, "Add", "huge")
    node = helper.make_node("ConstantOfShape", [constant(model, "shape", [LARGE, LARGE])], ["huge"])
    model.graph.node.insert(0, node)


def repeated(model):
    after_logits(model, "Tile", constant(model, "times", [LARGE, LARGE]))


def spread(model):
    after_logits(model, "Expand", constant(model, "shape", [LARGE, LARGE, 1, 1]))


def counted(model):
    start, stop, step = (constant(model, name, value) for name, value in (("a", 0), ("b", 1 << 36), ("c", 1)))
    model.graph.node.insert(0, helper.make_node("Range", [start, stop, step], ["numbers"]))
    model.graph.node.insert(1, helper.make_node("Cast", ["numbers"], ["huge"], to=1))
    after_logits(model, "Add", "huge")


def multiplied(model):
    sides = (
        constant(model, "a", np.ones((LARGE, 1)), np.float32),
        constant(model, "b", np.ones((1, LARGE)), np.float32),
    )
    model.graph.node.insert(0, helper.make_node("MatMul", sides, ["huge"]))
    after_logits(model, "Add", "huge")


@pytest.mark.parametrize("change", [of_constants, repeated, spread, counted, multiplied])
def test_what_would_take_more_memory_than_any_encoder_is_a_sentence(exported, model, change):
    change(model)
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(UserError, match="onnxruntime cannot run"):
        open_model(put(exported, model)).predict_logits(["goal coach"])


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_logits_the_wrong_way_round_are_found_for_any_number_of_texts(exported, model, rows):
    after_logits(model, "Transpose", perm=[1, 0])
    with pytest.raises(UserError, match="missing or damaged") as refused:
        open_model(put(exported, model)).predict_logits(["goal coach"] * rows)
    assert "where [(1, 3)] is expected" in str(refused.value) or rows == 2
    assert len(LABELS) == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_refused(exported, model, bad):
    after_logits(model, "Add", constant(model, "bad", bad, np.float32))
    with pytest.raises(UserError, match="missing or damaged") as refused:
        open_model(put(exported, model)).predict_logits(["goal coach"])
    assert "finite float32 numbers are expected" in str(refused.value.found)


def test_a_table_without_the_tokenizers_words_is_a_sentence(exported, model):
    weights = model.graph.initializer[0]
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights)[:5], weights.name))
    with pytest.raises(UserError, match="onnxruntime cannot run") as refused:
        open_model(put(exported, model)).predict_logits(["goal coach"])
    assert "out of data bounds" in str(refused.value.found)


def test_a_graph_that_does_not_come_to_an_end_is_stopped(exported, model, monkeypatch):
    monkeypatch.setattr(onnx_session, "SLOWEST_SECONDS", 0.2)
    monkeypatch.setattr(onnx_session, "_LOOK_SECONDS", 0.1)
    side = constant(model, "side", np.eye(1200), np.float32)
    for number in range(300):  # half a minute of products
        product = [side if number == 0 else f"product{number - 1}", side]
        model.graph.node.insert(number, helper.make_node("MatMul", product, [f"product{number}"]))
    model.graph.node.insert(300, helper.make_node("ReduceMax", ["product299"], ["end"], keepdims=0))
    after_logits(model, "Mul", "end")
    began = time.monotonic()
    with pytest.raises(UserError, match="is not a graph that newsdesk runs") as refused:
        open_model(put(exported, model)).predict_logits(["goal coach"])
    assert "take it more than 0 seconds" in str(refused.value.found)
    assert time.monotonic() - began < 8


_IMPATIENT = """
from newsdesk import cli
from newsdesk.prediction import onnx_session
onnx_session.SLOWEST_SECONDS, onnx_session._LAST_OPERATOR_SECONDS, onnx_session._LOOK_SECONDS = 0.2, 0.3, 0.1
cli.main()
"""


def test_an_operator_that_does_not_come_to_an_end_ends_the_command_with_a_sentence(exported, model):
    """Nothing can stop it from within: of 9,000 rows and columns, one product takes ten seconds."""
    shape = constant(model, "shape", [9000, 9000])
    model.graph.node.insert(0, helper.make_node("Cast", ["attention_mask"], ["ones"], to=1))
    model.graph.node.insert(1, helper.make_node("ReduceMax", ["ones"], ["one"], keepdims=0))
    model.graph.node.insert(2, helper.make_node("Expand", ["one", shape], ["side"]))
    model.graph.node.insert(3, helper.make_node("MatMul", ["side", "side"], ["product"]))
    model.graph.node.insert(4, helper.make_node("ReduceMax", ["product"], ["end"], keepdims=0))
    after_logits(model, "Mul", "end")
    command = [sys.executable, "-c", _IMPATIENT, "predict", put(exported, model), "goal coach"]
    ended = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "is not a graph that newsdesk runs" in ended.stderr
    assert "take it more than 0 seconds" in ended.stderr
