"""What a run's log writes for TensorBoard, and a resumed run in Weights & Biases, by a client that only records its calls."""

import struct
import sys
import types

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from fcclip_jax.training.run_log import RunLog


def test_a_resumed_run_continues_its_run(tmp_path, monkeypatch):
    calls = []

    def init(**options):
        calls.append(options)
        return types.SimpleNamespace(id=options["id"] or "new1", log=lambda *_, **__: None, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for first_step in (0, 5):
        RunLog(tmp_path, {"seed": 0}, first_step=first_step, wandb="project").close()
    assert [call["id"] for call in calls] == [None, "new1"]
    assert all(call["resume"] == "allow" and call["project"] == "project" for call in calls)


def test_tensorboard_shows_hyperparameters_and_scores(tmp_path):
    """Reads the event file, whose records have 12 bytes of length and checksum before and 4 after each event."""
    log = RunLog(tmp_path, {"seed": 3, "optim": {"learning_rate": 1e-4, "milestones": (5, 6)}, "average": None})
    log.measure("pq", 25.0)
    log.measure("miou", 50.0)
    log.write(7)
    log.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    values = [value for event in events for value in event.summary.value]
    scalars = {value.tag: value.simple_value for value in values if value.HasField("simple_value")}
    assert scalars == {"pq": 25, "miou": 50}
    plugins = [HParamsPluginData.FromString(value.metadata.plugin_data.content) for value in values
               if value.metadata.plugin_data.plugin_name == "hparams"]  # fmt: skip
    assert {info.name.tag for plugin in plugins for info in plugin.experiment.metric_infos} == {"pq", "miou"}
    (start,) = (plugin.session_start_info.hparams for plugin in plugins if plugin.session_start_info.hparams)
    assert start["optim.learning_rate"].number_value == 1e-4 and start["seed"].number_value == 3
    assert start["optim.milestones"].string_value == "(5, 6)" and start["average"].string_value == "None"
