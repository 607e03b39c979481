"""The private authority, what it writes, and what is looked through before a certificate is used."""

import ipaddress
import os
import shutil
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from dimat.errors import UsageError
from dimat.transport.authority import issue, issue_missing, new_authority
from dimat.transport.security import (
    ADMIN,
    COORDINATOR,
    ONLOOKER,
    Identity,
    agent,
    held_identities,
    identity_in,
    load_credentials,
)


def extension(path: Path, kind: type) -> object:
    return x509.load_pem_x509_certificate(path.read_bytes()).extensions.get_extension_for_class(kind).value


def test_keys_are_the_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        new_authority(tmp_path / "lab")
        issue(tmp_path / "lab", agent(3))
    finally:
        os.umask(before)
    for name in ("authority.key", "agent-3.key"):
        assert stat.S_IMODE((tmp_path / "lab" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "lab").stat().st_mode) == 0o700


def test_nothing_is_overwritten(lab: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(lab, tmp_path / "lab")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UsageError, match=r"authority\.pem is there already"):
        new_authority(folder)
    with pytest.raises(UsageError, match=r"agent-3\.pem is there already"):
        issue(folder, agent(3))
    (folder / "agent-2.pem").unlink()  # a key alone is not overwritten either
    with pytest.raises(UsageError, match=r"agent-2\.key is there already"):
        issue(folder, agent(2))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: content for name, content in before.items() if name != "agent-2.pem"
    }


def test_a_certificate_binds_identity_hosts_and_purpose(tmp_path: Path) -> None:
    new_authority(tmp_path)
    names = extension(
        issue(tmp_path, agent(3), hosts=["node-3.example.org", "10.0.0.7", "::1"]), x509.SubjectAlternativeName
    )
    assert isinstance(names, x509.SubjectAlternativeName)
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["dimat:agent:3"]
    assert names.get_values_for_type(x509.DNSName) == ["agent-3.dimat.internal", "node-3.example.org"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("10.0.0.7"), ipaddress.ip_address("::1")]
    both = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    for identity, purposes in ((agent(4), both), (COORDINATOR, both)):
        assert set(extension(issue(tmp_path, identity), x509.ExtendedKeyUsage)) == purposes  # type: ignore[call-overload]
    for identity in (ADMIN, ONLOOKER):  # they call, and never answer
        path = issue(tmp_path, identity)
        assert set(extension(path, x509.ExtendedKeyUsage)) == {ExtendedKeyUsageOID.CLIENT_AUTH}  # type: ignore[call-overload]
        constraints = extension(path, x509.BasicConstraints)
        assert isinstance(constraints, x509.BasicConstraints)
        assert not constraints.ca  # nobody who was issued to can issue
    assert held_identities(tmp_path) == [COORDINATOR, ADMIN, ONLOOKER, agent(3), agent(4)]


@pytest.mark.parametrize("host", ["*.example.org", "agent-4.dimat.internal", "dimat.internal", "a b", "", "-x", "a..b"])
def test_hosts_that_could_stand_for_more_are_refused(lab: Path, host: str) -> None:
    with pytest.raises(UsageError, match="--host"):
        issue(lab, agent(77), hosts=[host])
    assert not list(lab.glob("agent-77*"))


def test_a_certificate_does_not_outlive_its_authority(tmp_path: Path) -> None:
    new_authority(tmp_path, days=10)
    with pytest.raises(UsageError, match="outlive") as caught:
        issue(tmp_path, agent(0), days=11)
    assert "--days 9" in str(caught.value.hint)
    issue(tmp_path, agent(0), days=9)


def test_what_is_missing_is_issued_and_what_is_there_is_kept(tmp_path: Path, lab: Path) -> None:
    new_authority(tmp_path)
    kept = issue(tmp_path, agent(1)).read_bytes()
    assert issue_missing(tmp_path, [COORDINATOR, agent(0), agent(1)]) == [COORDINATOR, agent(0)]
    assert (tmp_path / "agent-1.pem").read_bytes() == kept
    (tmp_path / "authority.key").unlink()
    assert issue_missing(tmp_path, [COORDINATOR]) == []
    with pytest.raises(UsageError, match=r"no certificates of agent 2, agent 3, and no authority\.key"):
        issue_missing(tmp_path, [COORDINATOR, agent(2), agent(3)])


# ------------------------------------------------------------------------------------------------------- looked through


def test_right_credentials_are_loaded_and_keep_their_secret(lab: Path) -> None:
    found = load_credentials(lab, agent(2))
    assert found.identity == agent(2)
    assert datetime.now(UTC) + timedelta(days=360) < found.expires_at < datetime.now(UTC) + timedelta(days=366)
    assert found.key.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert "PRIVATE" not in repr(found)
    assert found.key.decode().splitlines()[1] not in f"{found} {found!r}"


def spoil(folder: Path, how: str, yesterday: Path, elsewhere: Path) -> None:
    """Make agent 1's credentials in `folder` wrong."""
    pair = {"expired": yesterday, "of another authority": elsewhere}.get(how)
    if pair is not None:
        for end in ("pem", "key"):
            shutil.copy(pair / f"agent-1.{end}", folder)
    elif how == "open":
        (folder / "agent-1.key").chmod(0o644)
    elif how == "of another key":
        shutil.copy(folder / "agent-2.key", folder / "agent-1.key")
    elif how == "for another id":
        for end in ("pem", "key"):
            shutil.copy(folder / f"agent-2.{end}", folder / f"agent-1.{end}")
    elif how == "no text":
        (folder / "agent-1.pem").write_bytes(b"\x80\x04garbage")
    else:
        (folder / "agent-1.key").unlink()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("expired", "expired on"),
        ("of another authority", "was not issued by the authority"),
        ("open", "open to others (mode 0644)"),
        ("of another key", "is not the key of"),
        ("for another id", "does not prove agent 1: it is for agent 2"),
        ("no text", "not PEM"),
        ("missing", "has no agent-1.key"),
    ],
)
def test_wrong_credentials_are_refused_before_anything_starts(
    lab: Path, yesterday: Path, elsewhere: Path, tmp_path: Path, how: str, words: str
) -> None:
    folder = shutil.copytree(lab, tmp_path / "copy")
    load_credentials(folder, agent(1))
    spoil(folder, how, yesterday, elsewhere)
    with pytest.raises(UsageError) as caught:
        load_credentials(folder, agent(1))
    assert words in str(caught.value)
    if how == "missing":
        assert "coordinator, an admin, an onlooker, agent 0, agent 2" in str(caught.value)
        assert "--agent 1" in str(caught.value.hint)


def test_a_folder_that_is_none_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder") as caught:
        load_credentials(tmp_path / "nowhere", COORDINATOR)
    assert "dimat certs new" in str(caught.value.hint)


@given(st.integers(0, 999_999_999))
def test_an_identity_is_read_back_from_its_name(number: int) -> None:
    for identity in (agent(number), COORDINATOR, ADMIN, ONLOOKER):
        assert identity_in(["https://example.org", identity.uri]) == identity


@given(st.text(max_size=20))
def test_one_uri_is_at_most_one_identity_and_only_in_its_own_spelling(text: str) -> None:
    for uri in (text, f"dimat:{text}", f"dimat:agent:{text}"):
        found = identity_in([uri])
        assert found is None or found.uri == uri
    assert identity_in([Identity("agent", 1).uri, "dimat:" + text]) is None
