"""Paths as users write them, the cache folder, and files that are whole or absent, on a disk and in a bucket."""

import hashlib
import io
import json
import os
import pathlib
import pickle
import threading

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import buckets, files
from diffusion_jax.data import DataConfig, open_source
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.image_folder import ImageFiles
from diffusion_jax.files import user_path, write_atomically


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
    """A folder that a test has for itself."""
    if request.param == "disk":
        return user_path(tmp_path)
    return user_path(request.getfixturevalue("bucket")) / tmp_path.name


def test_the_cache_folder_follows_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / "diffusion_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(pathlib.Path, "home", lambda: tmp_path / "home")
    assert files.cache_folder() == tmp_path / "home" / ".cache" / "diffusion_jax"


def test_paths_are_read_as_users_write_them(monkeypatch, tmp_path, bucket):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert str(user_path("~/a/b")) == f"{tmp_path}/a/b"
    assert str(user_path("runs/lr=0.1:x/c:d")) == "runs/lr=0.1:x/c:d"
    assert str(user_path("gs://bucket/a/b/")) == "gs://bucket/a/b" == str(files.absolute(user_path("gs://bucket/a/b")))
    assert files.absolute(user_path("a")) == tmp_path / "a"
    assert files.in_bucket(user_path("gs://bucket/a")) and not files.in_bucket(user_path("gs/bucket"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("ftp://host/a", r"^ftp://host/a: 'ftp://' is no scheme that is read \(gs://, s3://\)"),
        ("gs:/bucket/a", r"^gs:/bucket/a: 'gs:/' is no scheme that is read .*; did you mean 'gs://'\?$"),
        ("gcs://bucket/a", r"^gcs://bucket/a: 'gcs://' is no scheme that is read .*; did you mean 'gs://'\?$"),
        (pathlib.Path("gs://bucket/a"), r"^gs:/bucket/a: 'gs:/' is no scheme"),
        ("gs://", r"^gs://: names no bucket; write gs://BUCKET/PATH$"),
        ("s3://bucket/a", r"^s3://bucket/a: s3fs is not installed, which reads s3:// paths: pip install 's3fs'$"),
    ],
)
def test_mistakes_in_paths_are_one_line(path, message):
    with pytest.raises(UserError, match=message):
        user_path(path)


def test_what_reads_a_bucket_may_be_missing(monkeypatch):
    monkeypatch.setattr(buckets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gs://b/a: gcsfs is not installed.*: pip install 'diffusion_jax\[gcs\]'$"):
        user_path("gs://b/a")


def test_a_bucket_that_is_not_there(bucket):
    with pytest.raises(UserError, match=r"^gs://nobody/a: cannot be made \(.+\); use another place$"):
        files.make_folder(user_path("gs://nobody/a"))
    with pytest.raises(OSError, match="gs://nobody/a"):
        write_atomically(user_path("gs://nobody/a"), b"x")


def test_a_file_is_replaced_whole_or_not_at_all(folder, monkeypatch):
    path = folder / "new" / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert files.read_bytes(path) == b"new"

    with pytest.raises(ZeroDivisionError), files.open_atomically(path) as file:
        file.write(b"half of a newer one")
        raise ZeroDivisionError

    def interrupted(*arguments, **options):
        raise OSError(5, "disk on fire")

    if files.in_bucket(folder):
        monkeypatch.setattr("gcsfs.core.simple_upload", interrupted)
    else:
        monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(OSError, match="disk on fire"):
        write_atomically(path, b"newer")
    assert files.read_bytes(path) == b"new" and list(path.parent.iterdir()) == [path]


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_an_upload_that_breaks_off_leaves_nothing(bucket, monkeypatch, tmp_path):
    """One of more than a piece: the first has arrived when the connection is lost."""
    import gcsfs.core

    upload_chunk, call, seen = gcsfs.core.upload_chunk, gcsfs.core.GCSFileSystem._call, []

    async def lost(system, location, data, offset, size, content_type):
        seen.append(offset)
        if offset:
            raise OSError(5, "connection lost")
        return await upload_chunk(system, location, data, offset, size, content_type)

    async def cancelled(system, method, *arguments, **options):
        if method != "DELETE":  # which the emulator does not know of uploads
            return await call(system, method, *arguments, **options)
        seen.append(method)

    monkeypatch.setattr(gcsfs.core, "upload_chunk", lost)
    monkeypatch.setattr(gcsfs.core.GCSFileSystem, "_call", cancelled)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = user_path(bucket) / "broken_off" / "file"
    with pytest.raises(OSError, match="connection lost"):
        write_atomically(path, bytes(60 << 20))
    assert seen == [0, 50 << 20, "DELETE"] and not path.exists() and not list(tmp_path.iterdir())


def test_files_are_read_in_pieces_and_whole(folder):
    path, data = folder / "file", np.random.default_rng(0).bytes(1000)
    write_atomically(path, data)
    with files.open_to_read(path) as file:
        file.seek(990)
        assert file.read() == data[990:]
    assert files.local_copy(path).read_bytes() == data
    assert files.sha256_of(path) == hashlib.sha256(data).hexdigest()
    for read in (files.read_bytes, files.local_copy, lambda path: files.open_to_read(path).__enter__()):
        if read is files.local_copy and not files.in_bucket(folder):
            continue  # a path is as good as a copy
        with pytest.raises(FileNotFoundError) as caught:
            read(folder / "absent")
        assert caught.value.strerror == "No such file or directory"


def test_folders_are_listed(folder):
    assert files.list_files(folder / "absent") == {}
    for name in ("b/2", "b/deep/er/3", "a", "b.txt"):
        write_atomically(folder / "tree" / name, b"x" * len(name))
    assert files.list_files(folder / "tree") == {name: len(name) for name in ("a", "b/2", "b.txt", "b/deep/er/3")}
    folders, names = files.list_folder(folder / "tree")
    assert folders == ["b"] and sorted(names) == ["a", "b.txt"]


def test_a_listing_is_never_an_old_one(bucket):
    """Of what another process has written since; here through a connection of its own."""
    import gcsfs

    place = user_path(bucket) / "others"
    write_atomically(place / "mine", b"x")
    assert len(list(place.iterdir())) == 1 and not (place / "theirs").exists()
    gcsfs.GCSFileSystem(skip_instance_cache=True).pipe_file(f"{place}/theirs", b"y")
    assert len(list(place.iterdir())) == 2 and (place / "theirs").exists()
    assert set(files.list_files(place)) == {"mine", "theirs"}


def test_a_local_copy_is_fetched_once_by_all_threads_and_again_when_the_object_changes(bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = user_path(bucket) / "copied" / "weights.bin"
    write_atomically(path, b"one")
    system, fetched = buckets._file_system(str(path)), []
    get_file = system.get_file
    monkeypatch.setattr(system, "get_file", lambda *a, **k: (fetched.append(a), get_file(*a, **k))[1])
    copies = []
    threads = [threading.Thread(target=lambda: copies.append(files.local_copy(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(copies) == 8 and len(set(copies)) == len(fetched) == 1
    assert copies[0].name == "weights.bin" and copies[0].read_bytes() == b"one"
    write_atomically(path, b"two")
    assert files.local_copy(path).read_bytes() == b"two" and copies[0].read_bytes() == b"one"


@pytest.fixture(scope="module")
def pictures(bucket, tmp_path_factory):
    """The same images in class folders, on a disk and in a bucket."""
    disk, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name in ("cat/1.png", "cat/more/2.png", "dog/3.png", "dog/.hidden.png", "dog/text.txt"):
        image = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(image, format="PNG")
        for place in (user_path(disk), user_path(bucket) / "pictures"):
            write_atomically(place / name, image.getvalue())
    return disk, f"{bucket}/pictures"


def test_image_folders_in_a_bucket_are_those_of_a_disk(pictures, monkeypatch):
    disk, place = pictures
    requests = []
    list_files = buckets.list_files
    monkeypatch.setattr(buckets, "list_files", lambda *a, **k: (requests.append(a), list_files(*a, **k))[1])
    ours, theirs = (open_source(DataConfig(f"folder:{each}", 8)) for each in (place, disk))
    assert len(requests) == 2 + len(theirs.class_names)  # one for each class, however many folders are in it
    ours = pickle.loads(pickle.dumps(ours))  # as it reaches a worker process
    assert ours.class_names == theirs.class_names == ("cat", "dog") and len(ours) == len(theirs) == 3
    for i in range(3):
        assert ours[i]["label"] == theirs[i]["label"] and ours.path(i).startswith(place)
        np.testing.assert_array_equal(ours[i]["image"], theirs[i]["image"])
    with pytest.raises(UserError, match=r"^gs://bucket/nothing: no .* file and no class folder in it$"):
        open_source(DataConfig(f"folder:{place.replace('pictures', 'nothing')}", 8))


def test_images_to_score_may_be_in_a_bucket(pictures):
    disk, place = pictures
    ours, theirs = ImageFiles(user_path(place) / "cat"), ImageFiles(user_path(disk) / "cat")
    assert ours.describe() == {**theirs.describe(), "folder": f"{place}/cat"}
    np.testing.assert_array_equal(next(ours.batches())["image"], next(theirs.batches())["image"])


def test_results_in_a_bucket_are_read_back(bucket):
    from diffusion_jax.commands.evaluate import read_result

    path = user_path(bucket) / "result.json"
    write_atomically(path, json.dumps({"count": 1, "extractor": {}, "samples": {}}).encode())
    assert read_result(path)["count"] == 1
    with pytest.raises(UserError, match=r"^--compare gs://bucket/absent.json: is no result file"):
        read_result(user_path(bucket) / "absent.json")
