"""The chain file and the kubeconfig in it."""

from __future__ import annotations

import base64
import json
import ssl
from pathlib import Path
from typing import Any

import pytest

from keystone_authenticator.chain import ChainError, claims_to_be_ours, parse
from keystone_authenticator.identity import Identity
from keystone_authenticator.reviews import Verdict
from tests.unit.authenticator.support import Authority


def chain_file(
    kubeconfig: Any = None, *lines: str, files: dict[str, bytes] | None = None, path: str = "/cdk/webhook.yaml"
) -> bytes:
    """A chain file as the script writes it."""
    records = ["chained 1", *lines]
    if kubeconfig is not None:
        content = kubeconfig if isinstance(kubeconfig, bytes) else json.dumps(kubeconfig).encode()
        records.append(f"kubeconfig {base64.b64encode(content).decode()} {path}")
    records += [f"file {base64.b64encode(content).decode()} {name}" for name, content in (files or {}).items()]
    return ("\n".join(records) + "\n").encode()


def kubeconfig(user: Any = None, **cluster: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:5000/v1", **cluster}}],
        "users": [{"name": "u", "user": user or {}}],
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    }


def test_nothing_displaced() -> None:
    assert parse(b"chained 1\nnone\n") is None


def test_version_and_ttl_have_the_api_servers_defaults() -> None:
    displaced = parse(chain_file(kubeconfig()))
    assert displaced is not None
    assert (displaced.version, displaced.ttl) == ("v1beta1", 120)


@pytest.mark.parametrize(
    ("text", "seconds"), [("1m0s", 60), ("2m", 120), ("0", 0), ("0s", 0), ("1h1m1.5s", 3661.5), ("250ms", 0.25)]
)
def test_a_ttl_is_a_go_duration(text: str, seconds: float) -> None:
    displaced = parse(chain_file(kubeconfig(), "version v1", f"ttl {text}"))
    assert displaced is not None
    assert (displaced.version, displaced.ttl) == ("v1", seconds)


def test_files_are_found_absolute_and_beside_the_kubeconfig(authority: Authority) -> None:
    ca = authority.ca.read_bytes()
    for named in ("/cdk/ca.crt", "ca.crt"):
        displaced = parse(chain_file(kubeconfig(**{"certificate-authority": named}), files={"/cdk/ca.crt": ca}))
        assert displaced is not None
        assert displaced.context is not None
        assert displaced.context.verify_mode == ssl.CERT_REQUIRED


def test_a_kubeconfig_without_contexts_has_one_cluster_and_user() -> None:
    """Charmed Kubernetes' own webhook kubeconfig."""
    content = b"""
apiVersion: v1
kind: Config
preferences: {}
clusters:
  - name: authenticator
    cluster: {server: "https://127.0.0.1:5000/v1"}
"""
    displaced = parse(chain_file(content))
    assert displaced is not None
    assert displaced.url == "https://127.0.0.1:5000/v1"


def test_client_certificate_token_and_password_are_read(authority: Authority) -> None:
    certificate, key = authority.issue("chain-client", client=True)
    data = {
        "client-certificate-data": base64.b64encode(certificate.read_bytes()).decode(),
        "client-key-data": base64.b64encode(key.read_bytes()).decode(),
    }
    assert parse(chain_file(kubeconfig(data))) is not None
    token = parse(chain_file(kubeconfig({"tokenFile": "token"}), files={"/cdk/token": b"secret\n"}))
    assert token is not None
    assert token.headers == {"Authorization": "Bearer secret"}
    basic = parse(chain_file(kubeconfig({"username": "a", "password": "b"})))
    assert basic is not None
    assert basic.headers == {"Authorization": "Basic YTpi"}


def test_skipping_verification_stays_the_choice_that_it_was() -> None:
    displaced = parse(chain_file(kubeconfig(**{"insecure-skip-tls-verify": True})))
    assert displaced is not None
    assert displaced.context is not None
    assert displaced.context.verify_mode == ssl.CERT_NONE


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1"),
        (b"chained 2\nnone\n", "line 1"),
        (b"chained 1\nnone", "does not end"),
        (b"chained 1\n", "no kubeconfig"),
        (b"chained 1\nnone\nversion v1\n", "line 2"),
        (b"chained 1\nversion v2\n", "line 2"),
        (b"chained 1\nttl 5x\n", "line 2"),
        (b"chained 1\nkubeconfig *** /x\n", "line 2: not base64"),
        (b"chained 1\nkubeconfig YQ== x\n", "line 2: expected an absolute path"),
        (b"chained 1\nfile YQ==\n", "line 2"),
        (b"chained 1\n\xff\n", "UTF-8"),
        (chain_file(b"- a"), "not a mapping"),
        (chain_file(b"{"), "not YAML"),
        (chain_file({}), "0 clusters"),
        (chain_file(kubeconfig(server="ftp://x")), "no server"),
        (chain_file(kubeconfig(**{"certificate-authority": "ca.crt"})), "does not have"),
        (chain_file(kubeconfig(**{"certificate-authority-data": "YQ=="})), "not usable PEM"),
        (chain_file(kubeconfig({"exec": {"command": "x"}})), "exec is not supported"),
        (chain_file(kubeconfig({"client-certificate-data": "YQ=="})), "together"),
        (chain_file({**kubeconfig(), "current-context": "y"}), "0 contexts named 'y'"),
    ],
)
def test_a_broken_file_says_where(content: bytes, message: str) -> None:
    with pytest.raises(ChainError, match=message):
        parse(content)


@pytest.mark.parametrize(
    "identity",
    [
        Identity("keystone:alice", "u", (), ()),
        Identity(" keystone:alice", "u", (), ()),
        Identity("\tKeystone:alice", "u", (), ()),
        Identity("admin", "u", ("own", "keystone:group:ops\n"), ()),
        Identity("admin", "u", ("\u00a0keystone:group:ops",), ()),
        Identity("admin", "u", ("keystone:project:p1",), ()),
        Identity("admin", "u", (), (("alpha.kubernetes.io/identity/roles", ("member",)),)),
        Identity("admin", "u", (), (("Alpha.kubernetes.io/Identity/roles", ("member",)),)),
    ],
)
def test_a_chained_answer_cannot_claim_what_is_ours(identity: Identity) -> None:
    assert claims_to_be_ours(Verdict(identity, None, None))


def test_other_chained_answers_pass() -> None:
    assert (
        claims_to_be_ours(Verdict(Identity("system:node:a", "", ("system:nodes",), (("k", ("v",)),)), None, None))
        is None
    )
    assert claims_to_be_ours(Verdict(None, None, None)) is None


def test_the_file_may_be_what_the_script_writes(tmp_path: Path, authority: Authority) -> None:
    path = tmp_path / "chained"
    path.write_bytes(chain_file(kubeconfig(), "version v1", "ttl 1m0s"))
    assert parse(path.read_bytes()) is not None
