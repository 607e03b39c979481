"""The config is closed and frozen, and its errors name the key, what was given and the closest right name."""

from pathlib import Path

import pytest
import yaml

from dimat.config import RunConfig, load_config
from dimat.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("agnets=3", ["unknown key 'agnets'", "Did you mean 'agents'?"]),
        ("task.partition.alpa=1", ["unknown key 'task.partition.alpa'", "Did you mean 'task.partition.alpha'?"]),
        ("merge.basis=agre", ["merge.basis", "'agre'", "Did you mean 'agree'?"]),
        ("agents=1", ["agents", "greater than or equal to 2", "got 1"]),
        ("agents=five", ["agents", "integer", "got 'five'"]),
        ("train.lr=-1", ["train.lr", "greater than 0", "got -1"]),
        ("topology=ring", ["topology", "got 'ring'", "graph, mixing"]),
        ("launch.max_restart=2", ["unknown key 'launch.max_restart'", "Did you mean 'launch.max_restarts'?"]),
        ("launch.ranks_per_agent=64", ["train.batch_size is 32", "launch.ranks_per_agent = 64"]),
        ("security.max_call=2", ["unknown key 'security.max_call'", "Did you mean 'security.max_calls'?"]),
        ("membership.repare=drop", ["unknown key 'membership.repare'", "Did you mean 'membership.repair'?"]),
        ("task.partition.scheme=column", ["partition.column"]),
        ("name=a/b", ["name"]),
        ("stop.target_accuracy=95", ["stop.target_accuracy", "less than or equal to 1", "got 95"]),
    ],
)
def test_what_is_wrong_is_said(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    for word in words:
        assert word in str(caught.value)


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["agents=1", "rounds=0"])
    assert "agents" in str(caught.value)
    assert "rounds" in str(caught.value)


@pytest.mark.parametrize("override", ["agents", "=3", "agents.x=1"])
def test_an_override_that_is_no_assignment_is_refused(override: str) -> None:
    with pytest.raises(ConfigError):
        load_config(None, ["agents=3", override])


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just words"])
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml.*No such file"):
        load_config(tmp_path / "nowhere.yaml")


def test_the_resolved_config_reads_back_the_same(tmp_path: Path) -> None:
    config = load_config(None, ["seed=7", "task.model.width=2", "topology.options.p=0.4"])
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert load_config(path) == config
    assert load_config(path).digest == config.digest


def test_a_model_option_may_be_set_over_a_bare_name() -> None:
    assert load_config(None, ["task.model=resnet20", "task.model.width=2"]).task.model == {
        "name": "resnet20",
        "width": 2,
    }


def test_the_digest_tells_configs_apart() -> None:
    assert load_config(None, ["seed=1"]).digest != load_config(None).digest


def test_the_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().seed = 3  # type: ignore[misc]


def test_the_documented_config_is_the_default() -> None:
    """The one in the design: these keys and values are a contract."""
    documented = yaml.safe_load(
        """
        name: digits-ring
        seed: 0
        agents: 5
        rounds: 20
        threads: 1
        init: different
        task: {name: digits, model: cnn, data: null, partition: {scheme: dirichlet, alpha: 0.5}}
        train: {epochs: 2, batch_size: 32, optimizer: sgd, lr: 0.05, momentum: 0.9, lr_schedule: cosine}
        topology: {graph: ring, mixing: metropolis}
        merge: {method: mean, align: activations, basis: auto, probe: local, calibrate: neighbourhood, every: 1,
                optimizer_state: keep, final: none}
        exchange: {mode: sync, timeout_s: 60, encoding: float32}
        stop: {target_accuracy: null, patience: null}
        launch: {ranks_per_agent: 1, max_restarts: 0}
        membership: {}
        security: {}
        faults: []
        """
    )
    parsed = RunConfig.model_validate(documented)
    default = RunConfig()
    assert parsed.model_copy(update={"topology": default.topology}) == default
    assert default.topology.mixing is None, "left open: metropolis, or uniform when the graph is directed"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["merge.final=complete", "stop.patience=3"], "take one or the other"),
        (["exchange.timeout_s=.inf"], "finite"),
        (["train.lr=.nan"], "train.lr"),
    ],
)
def test_what_does_not_fit_together_is_refused(settings: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(None, settings)
