"""What every kind of store does alike: S3, Google's, Azure's where a server of its protocol is
installed (`npm install -g azurite`), and the folders of this machine."""

import base64
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import azure_server
import gcs_server
import pytest
import store_server
from pools import digits_pool, write_config
from pyarrow import fs as pafs
from pyarrow.fs import FileType
from ray_head import free_port

from coreset_ray.config import load
from coreset_ray.io import stores
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.lease import Held, hold
from coreset_ray.io.shards import list_shards
from coreset_ray.io.tables import read_table
from coreset_ray.io.workspace import Workspace
from pipelines import forget, reselect, run


@pytest.fixture(scope="module")
def google() -> Iterator[gcs_server.Google]:
    with gcs_server.running() as server:
        yield server


@pytest.fixture(scope="module")
def azure() -> Iterator[azure_server.Azure]:
    if azure_server.COMMAND is None:
        pytest.skip("Azurite is not installed")
    with azure_server.running() as server:
        yield server


SERVERS = {"s3": "store", "gs": "google", "abfs": "azure"}  # their fixtures
SECRET = base64.b64encode(b"hunter2hunter2").decode()
Server = store_server.Store | gcs_server.Google | azure_server.Azure


@pytest.fixture(params=["local", *SERVERS])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder that is not there yet."""
    if request.param == "local":
        return str(tmp_path / "runs")
    server: Server = request.getfixturevalue(SERVERS[request.param])
    name = re.sub(r"[^a-z0-9]+", "-", f"alike-{request.node.name}".lower())[:60].strip("-")
    return server.uri(f"{server.bucket(name)}/runs")


@pytest.fixture
def folder(uri: str) -> Location:
    return locate(uri)


def held(place: Location, *, recursive: bool = False) -> dict[str, tuple[FileType, int | None]]:
    """What a listing says, by the path below the folder."""
    found = place.listing(recursive=recursive)
    assert len({info.path for info in found}) == len(found)
    return {i.path[len(place.path) + 1 :].rstrip("/"): (i.type, i.size) for i in found}


def test_a_folder_is_there_once_something_is_in_it(folder: Location) -> None:
    assert not folder.exists() and folder.listing() == folder.listing(recursive=True) == []
    (folder / "a" / "b" / "c.json").write_json({})
    for place in (folder, folder / "a", folder / "a" / "b"):
        assert place.exists() and place.info().type == FileType.Directory
    assert (folder / "a" / "b" / "c.json").info().type == FileType.File
    for absent in ("b", "a/b/c", "a/b/c.json/d", "a/b/c.jso"):
        assert not (folder / absent).exists()


def test_a_listing_names_files_and_folders_of_one_level(folder: Location) -> None:
    for name in ("one.json", "a/two.json", "a/b/three.json", "c/d/four.json", "a.json"):
        (folder / name).write_json({})
    (beside := folder.parent / "runs-of-others" / "five.json").write_json({})
    assert beside.exists()
    file, below = (FileType.File, 3), FileType.Directory
    names = {name: kind for name, (kind, _) in held(folder).items()}
    assert names == {"one.json": file[0], "a.json": file[0], "a": below, "c": below}
    assert held(folder)["one.json"] == file
    assert set(held(folder / "a")) == {"two.json", "b"} and set(held(folder / "c")) == {"d"}
    every = {name for name, told in held(folder, recursive=True).items() if told == file}
    assert every == {"one.json", "a.json", "a/two.json", "a/b/three.json", "c/d/four.json"}


def test_what_is_replaced_is_the_new_and_what_is_deleted_is_gone(folder: Location) -> None:
    place = folder / "a" / "x.json"
    for value in ({"a": 1}, {"a": "longer than before"}, {}):
        place.write_json(value)
        assert place.read_json() == value
    with pytest.raises(ZeroDivisionError), place.replacing() as sink:
        sink.write(b"half")
        raise ZeroDivisionError
    assert place.read_json() == {} and set(held(folder / "a")) == {"x.json"}
    place.delete()
    assert not place.exists()
    place.delete()
    with pytest.raises(FileNotFoundError):
        place.read_json()


def test_a_folder_goes_with_all_in_it_and_nothing_else(folder: Location) -> None:
    for name in ("a/x.json", "a/b/y.json", "ab/z.json", "c.json"):
        (folder / name).write_json({})
    (folder / "a").delete_folder()
    (folder / "none").delete_folder()
    assert not (folder / "a").exists()
    assert set(held(folder)) == {"ab", "c.json"}


def test_bytes_are_read_from_the_start_and_anywhere(folder: Location) -> None:
    content = bytes(range(256)) * 40_000
    with (folder / "x.bin").replacing() as sink:
        sink.write(content)
    with (folder / "x.bin").open_stream() as stream:
        assert stream.read(10) + stream.read() == content
    with (folder / "x.bin").open_file() as file:
        file.seek(5_000_001)
        assert file.read(300) == content[5_000_001:5_000_301]


def test_names_may_hold_what_a_key_may(folder: Location) -> None:
    names = ["a b#?é%25.json", "ä/ö.json", "100%.json"]
    for name in names:
        (folder / name).write_json({"name": name})
    assert set(held(folder)) == {"a b#?é%25.json", "ä", "100%.json"}
    for name in names:
        assert locate((folder / name).uri).read_json() == {"name": name}


def test_shards_are_found_by_folder_and_by_glob(folder: Location, uri: str) -> None:
    for name in ("a/00000.tar", "a/00001.tar", "b/c/00000.tar", "notes.txt"):
        with (folder / name).replacing() as sink:
            sink.write(b"\0" * 10240)
    address, question, options = uri.partition("?")
    found = [shard.name for shard in list_shards([uri])]
    assert found == ["a/00000.tar", "a/00001.tar", "b/c/00000.tar"]
    (shard,) = list_shards([f"{address}/a/*1.tar{question}{options}"])
    assert shard.size == 10240 and locate(shard.uri).exists()


def test_versions_follow_one_another(uri: str) -> None:
    workspace = Workspace(uri)
    published = workspace.published("standing")
    assert published.current() is None
    for wanted in (1, 2, 3):
        with hold(workspace.lease) as lease:
            number, folder = published.begin(lease)
            (folder / "manifest.parquet").write_json(number)
            published.publish(number, {"kept": number}, lease)
        assert (current := Workspace(uri).published("standing").current()) is not None
        assert current.number == number == wanted and current.manifest.read_json() == wanted
        pointer = (published.folder / "current.json").read_json()
        assert pointer == {"version": wanted, "folder": f"v00000{wanted}"}
    assert [version.number for version in published.versions()] == [1, 2, 3]


def test_a_place_is_opened_anew_where_it_is_sent(folder: Location) -> None:
    (folder / "x.json").write_json({"a": 1})
    sent = pickle.dumps((folder, folder.fs))
    place, filesystem = pickle.loads(sent)
    assert place == folder and (place / "x.json").read_json() == {"a": 1}
    assert filesystem.get_file_info(f"{folder.path}/x.json").size == 12
    assert azure_server.KEY.encode() not in sent


@pytest.mark.parametrize(
    ("variables", "name", "value"),
    [
        ({"AZURE_STORAGE_KEY": SECRET}, "account_key", SECRET),
        ({"AZURE_STORAGE_SAS_TOKEN": f"sv=1&sig={SECRET}"}, "sas_token", f"sv=1&sig={SECRET}"),
        ({"AZURE_STORAGE_KEY": SECRET, "AZURE_STORAGE_ACCOUNT": "mine"}, "account_key", SECRET),
        ({"AZURE_STORAGE_KEY": SECRET, "AZURE_STORAGE_ACCOUNT": "another"}, "account_key", ""),
        ({}, "account_key", ""),
    ],
)
def test_azure_takes_what_the_environment_has_for_the_account(
    variables: dict[str, str], name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("ACCOUNT", "KEY", "SAS_TOKEN"):
        monkeypatch.delenv(f"AZURE_STORAGE_{variable}", raising=False)
    for variable, told in variables.items():
        monkeypatch.setenv(variable, told)
    stores._opened.cache_clear()
    place = locate("abfs://container@mine.dfs.core.windows.net/a")
    assert place.fs.type_name == "abfs" and place.path == "container/a"
    held = pafs.AzureFileSystem.__reduce__(place.fs)[1][0]
    assert held["account_name"] == "mine" and held[name] == value
    assert SECRET.encode() not in pickle.dumps((place, place.fs))
    stores._opened.cache_clear()


def test_azure_without_credentials_is_one_message_and_no_abort(monkeypatch) -> None:
    """Over http no identity is even asked for, so this needs no server."""
    monkeypatch.delenv("AZURE_STORAGE_KEY")
    stores._opened.cache_clear()
    place = locate(f"abfs://mine@127.0.0.1:{free_port()}/container/a?enable_tls=false")
    for go in (place.exists, place.open_stream, place.open_file, lambda: place.write_json({})):
        with pytest.raises(OSError, match=r"abfs://mine@.*AZURE_STORAGE_KEY.*same command again"):
            go()
    stores._opened.cache_clear()


def test_a_lease_is_had_by_one_at_a_time(uri: str) -> None:
    place = Workspace(uri).lease
    with hold(place) as first:
        with pytest.raises(Held), hold(place):
            pass
        first.check()
    with hold(place) as second:
        assert second.number > first.number


@pytest.mark.slow
@pytest.mark.parametrize("kind", SERVERS)
def test_nights_and_a_takedown_are_those_on_files(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, ray_local: None
) -> None:
    """A whole run, two nights and a shard that leaves, with pool and workspace in a store."""
    train, _ = digits_pool(tmp_path, shards=4, each=30)
    server: Server = request.getfixturevalue(SERVERS[kind])
    away = locate(server.uri(f"{server.bucket(f'nights-{kind}')}/a"))
    here = locate(str(tmp_path / "here"))
    told = []
    for root in (here, away):
        pool, work = root / "pool", root / "work"
        path = write_config(tmp_path, pool.uri, workspace=work.uri, reselect={"keep": "previous"})
        config = load(path)
        manifests = []
        for arrived in ([0, 1], [2], [3], []):
            for number in arrived:
                with (pool / f"{number}.tar").replacing() as sink:
                    sink.write((train / f"{number:05d}.tar").read_bytes())
            if arrived == [0, 1]:
                run.run(config)
            if not arrived:
                (pool / "1.tar").delete()
            reselect.run(config)
            current = Workspace(work.uri).published("coreset").current()
            assert current is not None
            manifests.append(read_table(current.manifest))
        numbers = [v.number for v in Workspace(work.uri).published("coreset").versions()]
        assert numbers == [1, 2, 3, 4]
        assert "1.tar" in forget.run(config)["report"]
        assert "none names an image" in forget.run(config, yes=True)["report"]
        parts = [i.base_name for i in work.listing(recursive=True) if "/parts/1-" in i.path]
        assert parts == []
        told.append(manifests)
    assert all(mine.equals(theirs) for mine, theirs in zip(*told, strict=True))
    assert [len(manifest) for manifest in told[0][:3]] == [12, 18, 24]
