"""The [balancing] table: valid combinations, and one sentence for each refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenfold.balancing.settings import BalancingSettings, upstream
from tenfold.balancing.upstream import METHODS, Node
from tenfold.errors import SettingsError
from tenfold.settings import load

ADDRESSES = ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")


def refused(text: str, folder: Path) -> str:
    (folder / "tenfold.toml").write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(folder / "tenfold.toml", environ={})
    return str(caught.value).partition("tenfold.toml: ")[2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[balancing]\nmethod = 'random'",
            "balancing.method is \"random\"; it has to be 'least_conn', 'round_robin', 'random_two', "
            "'ip_hash', 'hash' or 'sticky'",
        ),
        (
            "[stack]\ninstances = 2\n[balancing]\nweights = [1, 2, 3]",
            "balancing.weights has 3 entries but stack.instances is 2; set one weight for each instance, or "
            "remove balancing.weights",
        ),
        (
            "[stack]\ninstances = 2\n[balancing]\nweights = [0, 2]",
            "balancing.weights is [0, 2]; a weight is a whole number from 1 to 1000",
        ),
        (
            "[stack]\ninstances = 2\n[balancing]\nbackups = 2",
            "balancing.backups is 2 but stack.instances is 2, so that no instance would get requests in "
            "ordinary times; set stack.instances higher or balancing.backups = 0",
        ),
        (
            "[stack]\ninstances = 2\n[balancing]\nbackups = 1\nmethod = 'ip_hash'",
            'balancing.backups is 1 but balancing.method is "ip_hash", which knows no backup servers; set '
            'balancing.backups = 0 or balancing.method = "least_conn"',
        ),
        (
            "[balancing]\nhash_key = 'client'",
            'balancing.hash_key is "client" but balancing.method is "least_conn", which does not look at it; '
            'set balancing.method = "hash" or remove balancing.hash_key',
        ),
        (
            "[balancing]\nserver_names = ['a b']",
            'balancing.server_names is ["a b"]; a name looks like "shop.example" or "*.shop.example"',
        ),
        ("[balancing]\nmax_fail = 1", "unknown key balancing.max_fail; did you mean balancing.max_fails?"),
    ],
)
def test_invalid_combination_is_refused_in_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    assert refused(text, tmp_path) == said


def test_methods_of_settings_and_upstream_agree() -> None:
    options = BalancingSettings.model_fields["method"].annotation.__args__
    assert set(options) == set(METHODS)


def test_settings_become_nodes_with_weight_backup_and_down() -> None:
    settings = BalancingSettings(weights=(3, 1, 1), backups=1)
    made = upstream(settings, ADDRESSES, out={"127.0.0.1:2"})
    assert made.nodes == (
        Node(address="127.0.0.1:1", weight=3),
        Node(address="127.0.0.1:2", down=True),
        Node(address="127.0.0.1:3", backup=True),
    )
    with pytest.raises(SettingsError, match="3 numbers for 2 instances"):
        upstream(settings, ADDRESSES[:2])


def test_every_value_reaches_the_upstream() -> None:
    values = {
        "method": "hash",
        "hash_key": "client",
        "max_fails": 7,
        "fail_timeout_s": 8,
        "keepalive": 9,
        "keepalive_idle_s": 1.5,
        "tries": 2,
        "connect_timeout_s": 1.25,
        "read_timeout_s": 2.5,
    }
    made = upstream(BalancingSettings(**values), ADDRESSES)
    assert {name: getattr(made, name) for name in values} == values
