"""A required signature refuses everything but the bundle that was signed, by a key that is trusted, for the product."""

from __future__ import annotations

import base64
import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from adedge.bundle import Bundle, create, open_bundle
from adedge.errors import BundleError, OutputError, UsageError
from adedge.keyring import revoke, trust
from adedge.manifest import MANIFEST, SIGNATURE, Manifest, Provenance
from adedge.signing import accept, claim_of, create_key, encoding_to_sign, require, sign, state_file
from adedge.specs import InputSpec, ReadyMap, ScoreSpec


def write_bundle(path: Path, weights: bytes = b"weights") -> Bundle:
    source = Provenance(created="", data="", data_digest="", seed=0, budget="", device="cpu", versions={})
    manifest = Manifest(
        method="m",
        variant="v",
        network={},
        input=InputSpec(height=32, width=32, channels=1, color="gray"),
        score=ScoreSpec(comparison=ReadyMap()),
        provenance=source,
    )
    with create(path, manifest) as draft:
        draft.write("weights.safetensors", weights)
    return draft.bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "brick.adedge")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    create_key(tmp_path / "key")
    return tmp_path / "key"


@pytest.fixture
def public(key: Path) -> Path:
    return key.with_name("key.pub")


def test_signed_bundle_is_accepted(bundle: Bundle, key: Path, public: Path) -> None:
    signed, claim = sign(bundle, key, product="brick", version=7, expires=date(2999, 12, 31))
    assert require(signed, public) == claim
    assert (claim.product, claim.version, claim.expires) == ("brick", 7, date(2999, 12, 31))
    reopened = Bundle.open(bundle.path)
    assert require(reopened, public) == claim
    assert reopened.verify() == []


def test_the_signature_can_be_verified_by_the_formats_own_rules(bundle: Bundle, key: Path, public: Path) -> None:
    """DSSE, protocol version 1, around an in-toto Statement v1: checked without adedge's own code."""
    import hashlib

    signed, _ = sign(bundle, key, product="brick", version=7)
    assert signed.signature is not None
    envelope = json.loads(signed.signature)
    payload = base64.b64decode(envelope["payload"])
    kind = "application/vnd.in-toto+json"
    assert envelope["payloadType"] == kind
    text = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    trusted = load_pem_public_key(public.read_bytes())
    trusted.verify(base64.b64decode(envelope["signatures"][0]["sig"]), text)  # type: ignore[union-attr,call-arg]
    statement = json.loads(payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    digest = hashlib.sha256((bundle.path / MANIFEST).read_bytes()).hexdigest()
    assert statement["subject"] == [{"name": "bundle.json", "digest": {"sha256": digest}}]


def test_the_encoding_is_the_specifications_example() -> None:
    assert encoding_to_sign("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_without_options_the_product_is_the_name_and_the_version_grows(bundle: Bundle, key: Path) -> None:
    before = int(datetime.now(timezone.utc).strftime("%Y%m%d%H%M%S"))
    claim = sign(bundle, key)[1]
    assert claim.product == "brick"
    assert before <= claim.version <= before + 100
    assert claim.expires is None


def test_private_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    create_key(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0
    with pytest.raises(UsageError, match="would be overwritten"):
        create_key(tmp_path / "key")


@pytest.mark.fault("the disk is full while keys are written")
@pytest.mark.parametrize("files_before", [0, 1])
def test_keys_that_do_not_fit_on_the_disk_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files_before: int
) -> None:
    fsync, calls = os.fsync, []

    def fill(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_file():
            calls.append(descriptor)
            if len(calls) > files_before:
                raise OSError(28, os.strerror(28))
        fsync(descriptor)

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", fill)
        with pytest.raises(OSError, match="No space"):
            create_key(tmp_path / "key")
    assert list(tmp_path.iterdir()) == []
    create_key(tmp_path / "key")


def test_unsigned_wrong_key_and_changed_bundles_are_refused(bundle: Bundle, tmp_path: Path, key: Path) -> None:
    public, other = key.with_name("key.pub"), create_key(tmp_path / "other")
    with pytest.raises(BundleError, match="is not signed"):
        require(bundle, public)
    signed, _ = sign(bundle, key)
    with pytest.raises(BundleError, match="signed by another key"):
        require(signed, other)
    manifest = bundle.path / MANIFEST
    manifest.write_text(manifest.read_text().replace('"variant": "v"', '"variant": "w"'))
    with pytest.raises(BundleError, match="changed after it was signed"):
        require(Bundle.open(bundle.path), public)


@pytest.mark.fault("a file of a bundle is exchanged between check and use")
def test_a_bundle_swapped_after_it_was_opened_is_of_no_use(bundle: Bundle, key: Path, public: Path) -> None:
    """The signature is checked on the bytes that the manifest was parsed from, whatever lies on the disk by then."""
    foreign = bundle.path / MANIFEST
    sign(bundle, key)
    genuine = foreign.read_bytes()
    foreign.write_bytes(genuine.replace(b'"variant": "v"', b'"variant": "w"'))
    opened = Bundle.open(bundle.path)
    foreign.write_bytes(genuine)
    assert opened.manifest.variant == "w"
    with pytest.raises(BundleError, match="changed after it was signed"):
        require(opened, public)
    genuine_opened = Bundle.open(bundle.path)
    foreign.write_bytes(b"{}")
    require(genuine_opened, public)


@pytest.mark.fault("a file of a bundle is exchanged between check and use")
def test_whatever_is_swapped_while_a_bundle_is_opened_only_the_signed_one_is_accepted(
    bundle: Bundle, key: Path, public: Path, record_property: Callable[[str, object], None]
) -> None:
    sign(bundle, key)
    path = bundle.path / MANIFEST
    genuine = path.read_bytes()
    foreign = genuine.replace(b'"variant": "v"', b'"variant": "w"')
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for data in (foreign, genuine):
                part = path.with_name("part")
                part.write_bytes(data)
                part.replace(path)

    attacker = threading.Thread(target=swap)
    attacker.start()
    opened = []
    try:
        for _ in range(300):
            with suppress(BundleError):
                opened.append(open_bundle(bundle.path, public).manifest.variant)
    finally:
        stop.set()
        attacker.join()
    assert set(opened) == {"v"}
    assert len(opened) < 300  # the attacker was quick enough to be refused
    record_property("tries", 300)


def test_a_signature_is_of_one_bundle_alone(bundle: Bundle, tmp_path: Path, key: Path, public: Path) -> None:
    other = write_bundle(tmp_path / "other.adedge", b"others")
    sign(bundle, key)
    shutil.copy(bundle.path / SIGNATURE, other.path / SIGNATURE)
    with pytest.raises(BundleError, match="changed after it was signed"):
        require(Bundle.open(other.path), public)


def test_editing_drops_the_signature(bundle: Bundle, key: Path, public: Path) -> None:
    signed, _ = sign(bundle, key)
    with signed.edit() as draft:
        draft.write("golden.npz", b"golden")
    with pytest.raises(BundleError, match="is not signed"):
        require(Bundle.open(bundle.path), public)


def altered(signature: bytes, change: Any) -> bytes:
    record = json.loads(signature)
    change(record)
    return json.dumps(record).encode()


def claim_version_9(record: dict[str, Any]) -> None:
    payload = base64.b64decode(record["payload"]).replace(b'"version": 1', b'"version": 9')
    record["payload"] = base64.b64encode(payload).decode()


@pytest.mark.fault("a damaged or forged signature")
@pytest.mark.parametrize(
    "damage",
    [
        lambda s: b"",
        lambda s: b"{}",
        lambda s: b"[]",
        lambda s: b"\xff",
        lambda s: b"[" * 100_000,
        lambda s: altered(s, lambda r: r.update(signatures=[])) and altered(s, lambda r: r.update(payload="!")),
        lambda s: altered(s, lambda r: r.update(payloadType="text/plain")),
        lambda s: altered(s, lambda r: r.update(signatures=5)),
        lambda s: altered(s, lambda r: r.update(signatures=[5])),
        lambda s: altered(s, lambda r: r["signatures"][0].update(sig="!")),
        lambda s: altered(s, lambda r: r["signatures"][0].update(sig="AAAA")),
        lambda s: altered(s, lambda r: r["signatures"][0].update(keyid=[1])),
        lambda s: altered(s, claim_version_9),
    ],
)
def test_damaged_signature_is_one_sentence(bundle: Bundle, key: Path, public: Path, damage: Any) -> None:
    signed, _ = sign(bundle, key, version=1)
    (bundle.path / SIGNATURE).write_bytes(damage(signed.signature))
    with pytest.raises(BundleError, match="is damaged"):
        require(Bundle.open(bundle.path), public)
    claim_of(Bundle.open(bundle.path))  # to show, which must not fail


def test_an_envelope_without_signatures_is_by_nobody(bundle: Bundle, key: Path, public: Path) -> None:
    signed, _ = sign(bundle, key)
    assert signed.signature is not None
    (bundle.path / SIGNATURE).write_bytes(altered(signed.signature, lambda r: r.update(signatures=[])))
    with pytest.raises(BundleError, match="signed by another key"):
        require(Bundle.open(bundle.path), public)


def test_damaged_bundle_is_not_signed(bundle: Bundle, key: Path) -> None:
    (bundle.path / "weights.safetensors").write_bytes(b"Weights")
    with pytest.raises(BundleError, match="not signed"):
        sign(bundle, key)
    assert not (bundle.path / SIGNATURE).exists()


def test_other_kinds_of_keys_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    pem = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    (tmp_path / "rsa").write_bytes(pem)
    (tmp_path / "text").write_text(json.dumps({}))
    with pytest.raises(UsageError, match="not an Ed25519 key"):
        sign(bundle, tmp_path / "rsa")
    with pytest.raises(UsageError, match="not a private key in PEM form"):
        sign(bundle, tmp_path / "text")
    with pytest.raises(UsageError, match="adedge keygen"):
        sign(bundle, tmp_path / "absent")


def test_an_expired_signature_is_refused_on_the_day_after(bundle: Bundle, key: Path, public: Path) -> None:
    today = datetime.now(timezone.utc)
    signed, _ = sign(bundle, key, expires=today.date())
    end_of_day = datetime.combine(today.date(), datetime.max.time(), timezone.utc)
    require(signed, public, now=end_of_day)
    with pytest.raises(BundleError, match=f"expired on {today.date()}"):
        require(signed, public, now=end_of_day + timedelta(seconds=1))
    with pytest.raises(UsageError, match="has passed"):
        sign(signed, key, expires=today.date() - timedelta(days=1))


def test_a_clock_before_the_signature_cannot_judge_its_expiry(bundle: Bundle, key: Path, public: Path) -> None:
    start = datetime(1970, 1, 1, tzinfo=timezone.utc)  # a board without a battery
    with pytest.raises(BundleError, match="clock says 1970-01-01"):
        require(sign(bundle, key, expires=date(2999, 1, 1))[0], public, now=start)
    require(sign(Bundle.open(bundle.path), key)[0], public, now=start)


@pytest.mark.fault("a bundle of another product, or an older one, by the same key")
def test_another_product_of_the_same_key_is_refused(bundle: Bundle, tmp_path: Path, key: Path, public: Path) -> None:
    state = tmp_path / "state" / "versions.json"
    signed, _ = sign(bundle, key, product="brick")
    accept(signed, public, "brick", state=state)
    with pytest.raises(BundleError, match="signed for 'brick', and 'bottle' is expected"):
        accept(signed, public, "bottle", state=state)


@pytest.mark.fault("a bundle of another product, or an older one, by the same key")
def test_an_older_version_is_refused_once_a_newer_one_was_accepted(
    bundle: Bundle, tmp_path: Path, key: Path, public: Path
) -> None:
    state = tmp_path / "state" / "versions.json"
    versions = {}
    for version in (3, 5):
        path = tmp_path / f"{version}.adedge"
        shutil.copytree(bundle.path, path)
        versions[version] = sign(Bundle.open(path), key, product="brick", version=version)[0]
    accept(versions[3], public, "brick", state=state)
    accept(versions[5], public, "brick", state=state)
    accept(versions[5], public, "brick", state=state)
    with pytest.raises(BundleError, match="is version 3 of 'brick', and this machine has accepted version 5"):
        accept(versions[3], public, "brick", state=state)
    accept(versions[3], public, state=state)  # nothing is expected, so nothing is compared
    assert json.loads(state.read_text()) == {"brick": 5}


def test_versions_of_products_are_independent(bundle: Bundle, tmp_path: Path, key: Path, public: Path) -> None:
    state = tmp_path / "versions.json"
    other = write_bundle(tmp_path / "bottle.adedge")
    accept(sign(bundle, key, product="brick", version=9)[0], public, "brick", state=state)
    accept(sign(other, key, product="bottle", version=1)[0], public, "bottle", state=state)
    assert json.loads(state.read_text()) == {"brick": 9, "bottle": 1}


@pytest.mark.parametrize("text", ["", "[]", '{"brick": "7"}', '{"brick": true}', "\xff"])
def test_damaged_state_accepts_nothing(bundle: Bundle, tmp_path: Path, key: Path, public: Path, text: str) -> None:
    (tmp_path / "versions.json").write_text(text, encoding="latin-1")
    with pytest.raises(BundleError, match="versions.json .*restore it, or remove it"):
        accept(sign(bundle, key)[0], public, "brick", state=tmp_path / "versions.json")


def test_state_that_cannot_be_written_accepts_nothing(bundle: Bundle, tmp_path: Path, key: Path, public: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="set ADEDGE_STATE"):
        accept(sign(bundle, key)[0], public, "brick", state=tmp_path / "file" / "versions.json")


def test_where_the_state_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("ADEDGE_STATE", "STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_file() == tmp_path / ".local/state/adedge/versions.json"
    monkeypatch.setenv("XDG_STATE_HOME", "/x")
    assert state_file() == Path("/x/adedge/versions.json")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/adedge:/var/lib/other")
    assert state_file() == Path("/var/lib/adedge/versions.json")
    monkeypatch.setenv("ADEDGE_STATE", "/s")
    assert state_file() == Path("/s/versions.json")
    monkeypatch.setenv("ADEDGE_STATE", "/mnt/a:b")  # one directory; only systemd's variable may hold several
    assert state_file() == Path("/mnt/a:b/versions.json")


def test_expecting_a_product_without_a_key_is_a_wrong_call(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="require a signature"):
        open_bundle(bundle.path, expect="brick")


def test_rotation_and_revocation(bundle: Bundle, tmp_path: Path, key: Path, public: Path) -> None:
    keyring, new = tmp_path / "keyring.json", create_key(tmp_path / "new")
    trust(keyring, public, "old")
    signed, _ = sign(bundle, key)
    require(signed, keyring)
    trust(keyring, new, "new")
    require(signed, keyring)
    revoke(keyring, "old", "laptop stolen")
    with pytest.raises(BundleError, match=r"that was revoked \(laptop stolen\)"):
        require(signed, keyring)
    require(sign(signed, tmp_path / "new")[0], keyring)


def test_a_graph_that_keeps_weights_in_other_files_is_not_signed(tmp_path: Path, bundle: Bundle, key: Path) -> None:
    onnx = pytest.importorskip("onnx")
    import numpy as np

    weights = onnx.numpy_helper.from_array(np.ones((4, 4), np.float32), "weights")
    info = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4, 4])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4, 4])
    node = onnx.helper.make_node("MatMul", ["x", "weights"], ["y"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [info], [result], [weights]))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="outside", size_threshold=0)
    with bundle.edit() as draft:
        draft.write("model.fp32.onnx", (tmp_path / "m.onnx").read_bytes())
    with pytest.raises(BundleError, match=r"not signed: .*model.fp32.onnx keeps weights in other files"):
        sign(draft.bundle, key)


@pytest.mark.parametrize("product", ["", "x" * 201, "a\x1b[2Jb", "two\nlines", "\udcff"])
def test_a_product_that_cannot_be_shown_cannot_be_signed(bundle: Bundle, key: Path, product: str) -> None:
    with pytest.raises(UsageError, match="1 to 200 printable characters: .*--product"):
        sign(bundle, key, product=product)
    assert Bundle.open(bundle.path).signature is None


def test_the_longest_product_and_the_largest_version_can_be_signed(bundle: Bundle, key: Path, public: Path) -> None:
    signed, claim = sign(bundle, key, product="ß" * 200, version=9223372036854775807)
    assert require(signed, public) == claim


def test_a_bundle_whose_name_is_no_product_can_be_signed_with_one(tmp_path: Path, key: Path) -> None:
    bundle = write_bundle(tmp_path / "\udcff.adedge")  # not UTF-8
    with pytest.raises(UsageError, match="--product"):
        sign(bundle, key)
    assert sign(bundle, key, product="brick")[1].product == "brick"


@pytest.mark.parametrize("version", [-1, 9223372036854775808, 10**5000, 1.5, 7.0, True, "7"], ids=lambda _: "")
def test_a_version_that_is_no_int64_cannot_be_signed(bundle: Bundle, key: Path, version: Any) -> None:
    with pytest.raises(UsageError, match="whole number from 0 .*--version"):
        sign(bundle, key, version=version)


def signed_again(bundle: Bundle, key: Path, payload: bytes) -> Bundle:
    """The bundle with a valid signature, by ``key``, of another payload."""
    secret = load_pem_private_key(key.read_bytes(), None)
    assert isinstance(secret, Ed25519PrivateKey)
    kind = "application/vnd.in-toto+json"
    signature = secret.sign(f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload)
    assert bundle.signature is not None
    envelope = json.loads(bundle.signature)
    envelope["payload"] = base64.b64encode(payload).decode()
    envelope["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    (bundle.path / SIGNATURE).write_text(json.dumps(envelope))
    return Bundle.open(bundle.path)


@pytest.mark.fault("a statement that a trusted key signed and that makes no sense")
@pytest.mark.parametrize(
    "change",
    [
        {"version": -1},
        {"version": 1.5},
        {"version": 7.0},
        {"version": True},
        {"version": "7"},
        {"version": 2**63},
        {"product": ""},
        {"product": "x" * 201},
        {"product": "\x1b]0;title\x07"},
        {"product": 5},
        {"signed": "2026-01-01T00:00:00"},
        {"expires": "someday"},
        {"expires": 99999999999},
        {"more": 1},
    ],
    ids=str,
)
def test_a_claim_that_makes_no_sense_is_damage_even_if_signed(
    bundle: Bundle, key: Path, public: Path, change: dict[str, Any]
) -> None:
    signed, _ = sign(bundle, key)
    assert signed.signature is not None
    statement = json.loads(base64.b64decode(json.loads(signed.signature)["payload"]))
    require(signed_again(signed, key, json.dumps(statement).encode()), public)
    statement["predicate"].update(change)
    forged = signed_again(signed, key, json.dumps(statement).encode())
    with pytest.raises(BundleError, match="is damaged"):
        require(forged, public)
    assert claim_of(forged) is None


@pytest.mark.fault("a statement that a trusted key signed and that makes no sense")
@pytest.mark.parametrize("payload", [b"[" * 100_000, b"\xff", b"[]", b"{}", b'{"_type": 5}', b"9" * 5000])
def test_a_payload_that_is_no_statement_is_damage_even_if_signed(
    bundle: Bundle, key: Path, public: Path, payload: bytes
) -> None:
    signed, _ = sign(bundle, key)
    forged = signed_again(signed, key, payload)
    with pytest.raises(BundleError, match="is damaged"):
        require(forged, public)
    assert claim_of(forged) is None


@pytest.mark.parametrize("others", [[{"keyid": "0" * 64, "sig": "!"}], [{"sig": "AAAA"}], [{"keyid": None}]])
def test_signatures_of_others_beside_a_trusted_one_do_not_matter(
    bundle: Bundle, key: Path, public: Path, others: list[dict[str, Any]]
) -> None:
    signed, claim = sign(bundle, key)
    assert signed.signature is not None
    for order in (lambda own: [*others, *own], lambda own: [*own, *others]):
        changed = altered(signed.signature, lambda r, order=order: r.update(signatures=order(r["signatures"])))
        (bundle.path / SIGNATURE).write_bytes(changed)
        assert require(Bundle.open(bundle.path), public) == claim


def test_the_hour_of_a_signature_in_another_time_zone_is_understood(bundle: Bundle, key: Path, public: Path) -> None:
    """At 10:00 UTC on January 1st it is January 2nd on Kiritimati, and the clock of the device is right."""
    signed, _ = sign(bundle, key, expires=date(2999, 1, 1))
    assert signed.signature is not None
    statement = json.loads(base64.b64decode(json.loads(signed.signature)["payload"]))
    statement["predicate"]["signed"] = "2026-01-02T00:00:00+14:00"
    abroad = signed_again(signed, key, json.dumps(statement).encode())
    require(abroad, public, now=datetime(2026, 1, 1, 10, 0, 1, tzinfo=timezone.utc))
    with pytest.raises(BundleError, match="set the clock"):
        require(abroad, public, now=datetime(2025, 12, 30, tzinfo=timezone.utc))


@pytest.mark.fault("several inspections accept bundles at once")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_no_accepted_version_is_forgotten_when_several_are_accepted_at_once(
    tmp_path: Path, key: Path, public: Path, record_property: Callable[[str, object], None]
) -> None:
    state = tmp_path / "state" / "versions.json"
    signed = {}
    for product in ("brick", "bottle", "cap"):
        for version in (1, 2, 3):
            path = tmp_path / f"{product}{version}.adedge"
            signed[product, version] = sign(write_bundle(path), key, product=product, version=version)[0]
    for _ in range(10):
        state.unlink(missing_ok=True)
        children = []
        for (product, _), bundle in signed.items():
            child = os.fork()
            if child == 0:
                try:
                    with suppress(BundleError):  # a newer version was accepted first
                        accept(bundle, public, product, state=state)
                except BaseException:
                    os._exit(1)
                os._exit(0)
            children.append(child)
        assert {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children} == {0}
        assert json.loads(state.read_text()) == {"brick": 3, "bottle": 3, "cap": 3}
    record_property("tries", 10 * len(signed))


def test_an_accepted_version_needs_no_writing(
    bundle: Bundle, tmp_path: Path, key: Path, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state may lie on a file system that is read-only by the time the inspection starts again."""
    state = tmp_path / "state" / "versions.json"
    signed, _ = sign(bundle, key, product="brick", version=0)
    accept(signed, public, "brick", state=state)

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "mkdir", refuse)
    monkeypatch.setattr(os, "fsync", refuse)
    accept(signed, public, "brick", state=state)


def test_signing_hashes_every_file_once(bundle: Bundle, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    check = Bundle.check

    def record(self: Bundle, name: str) -> None:
        checked.append(name)
        check(self, name)

    monkeypatch.setattr(Bundle, "check", record)
    sign(bundle, key)
    assert sorted(checked) == sorted(bundle.manifest.files)


def test_a_file_of_endless_signatures_is_refused(bundle: Bundle, key: Path) -> None:
    signed, _ = sign(bundle, key)
    assert signed.signature is not None
    (bundle.path / SIGNATURE).write_bytes(
        altered(signed.signature, lambda record: record.update(signatures=record["signatures"] * 10_000))
    )
    with pytest.raises(BundleError, match=r"bundle\.sig has .* MB, and at most 1 are accepted"):
        Bundle.open(bundle.path)
