"""The server of a run: what it answers is what the store has, and nobody else gets an answer."""

import asyncio
import contextlib
import http.client
import os
import socket
import threading
import time
from base64 import b64decode

import numpy as np
import pandas as pd
import pytest
from aiohttp import web

import semrsm_dist as srs
from semrsm_dist.cli.commands import main
from semrsm_dist.errors import ConfigError, StorageError, first_line
from semrsm_dist.report.page_data import Data, PairFacts, Queries
from semrsm_dist.report.view import filling, pyramid, tiles
from semrsm_dist.report.view.cache import Cache
from semrsm_dist.report.view.listening import listen
from semrsm_dist.report.view.live import LiveRun
from semrsm_dist.report.view.pyramid import Shape, Tile
from semrsm_dist.report.view.server import make_app
from semrsm_dist.report.view.site import write_site
from semrsm_dist.store.tiles import TileStore

from .conftest import make_run

TOKEN = "secret"


class Server:
    """A server of a run in a thread of its own."""

    def __init__(self, live, host="127.0.0.1"):
        self.live, self._loop, started = live, asyncio.new_event_loop(), threading.Event()

        async def start():
            self._runner = web.AppRunner(make_app(live, TOKEN, host))
            await self._runner.setup()
            site = web.TCPSite(self._runner, "127.0.0.1", 0)
            await site.start()
            self.port = site._server.sockets[0].getsockname()[1]
            started.set()

        def work():
            self._loop.run_until_complete(start())
            self._loop.run_forever()

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()
        started.wait(60)

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}/{TOKEN}/"

    def get(self, path, *, token=TOKEN, method="GET", **headers):
        """Request a path as it is, and return status, headers and content."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest(method, f"/{token}/{path}", skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, response.headers, content

    def wait_for(self, path):
        """Request a path until it is complete."""
        for _ in range(600):
            status, headers, content = self.get(path)
            if status != 202 and "Share" not in headers:
                return status, content
            time.sleep(0.1)
        raise TimeoutError(path)

    def close(self):
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self.live.close()


@contextlib.contextmanager
def serving(run, cache=None):
    server = Server(LiveRun(run, cache or Cache(None)))
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def server(run):
    with serving(run) as server:
        yield server


def expected_planes(run, layer, order, kernel="cosine"):
    places = np.ix_(*order)
    semantic, spatial = (
        run.similarity(layer, kernel, kind).to_numpy()[places] for kind in ("semantic", "spatio-semantic")
    )
    return np.stack([spatial, semantic, semantic - spatial, run.gap(layer, kernel).to_numpy()[places]])


def read_tile(server, layer, kernel, order, tile, shape):
    status, content = server.wait_for(f"tiles/{layer}/{kernel}/{order}/{tile[0]}/{tile[1]}-{tile[2]}.bin")
    assert status == 200
    return np.frombuffer(content, "<f4").reshape(4, *Shape(*shape).window(Tile(*tile)).shape)


@pytest.mark.parametrize("order", ["given", "label", "cluster"])
@pytest.mark.parametrize("name", ["run", "rectangular"])
def test_tiles_have_the_numbers_of_the_store_in_each_order(name, order, request):
    run = request.getfixturevalue(name)
    layout = run.layout("late")
    shape = layout.n_rows, layout.n_columns
    with serving(run) as server:
        _, content = server.wait_for(f"orders/1/{order}.bin")
        images = np.frombuffer(content, "<u4")
        rows, columns = (images, images) if run.is_symmetric else np.split(images, [shape[0]])
        assert sorted(rows) == list(range(shape[0]))
        assert sorted(columns) == list(range(shape[1]))
        found = read_tile(server, 1, "cosine", order, (0, 0, 0), shape)
        expected = expected_planes(run, "late", (rows, columns))
        np.testing.assert_array_equal(found[:3], expected[:3].astype(np.float32))
        assert np.all(found[3] >= expected[3])
        np.testing.assert_allclose(found[3], expected[3], rtol=1e-6)


def test_other_kernels_are_those_of_the_run(tmp_path):
    run = make_run(tmp_path, 12, layers=("late",), pictures=False, kernels=["linear", "rbf"])
    order = np.arange(12)
    with serving(run) as server:
        for kernel in ("cosine", "linear", "rbf"):
            found = read_tile(server, 0, kernel, "given", (0, 0, 0), (12, 12))
            expected = expected_planes(run, "late", (order, order), kernel)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
        assert server.get("tiles/0/other/given/0/0-0.bin")[0] == 404


def test_a_tile_that_needs_many_chunks_comes_bit_by_bit_and_is_kept(tmp_path, monkeypatch):
    for module in (pyramid, tiles):
        monkeypatch.setattr(module, "TILE", 64)
    monkeypatch.setattr(tiles, "OVERVIEW", 64)
    monkeypatch.setattr("semrsm_dist.results.matrices.CHUNK", 16)
    matching = {"matcher": "identity"}
    run = make_run(tmp_path, 150, layers=("late",), pictures=False, matching=matching)
    order = np.arange(150)
    with serving(run, Cache(tmp_path / "cache")) as server:
        monkeypatch.setattr(filling, "READERS", 1)
        status, _, first = server.get("tiles/0/cosine/label/1/0-0.bin")
        assert status == 200
        assert len(first) == 4 * 4 * 64 * 64
        order = np.frombuffer(server.get("orders/0/label.bin")[2], "<u4")
        expected = expected_planes(run, "late", (order, order))
        found = read_tile(server, 0, "cosine", "label", (1, 0, 1), (150, 150))
        blocks = expected[:, :128, 128:150].reshape(4, 64, 2, 11, 2)
        means, gaps = blocks[:2].mean(axis=(2, 4)), blocks[3].max(axis=(1, 3))
        np.testing.assert_allclose(found[:2], means, rtol=1e-5, atol=1e-7)  # of single precision
        assert np.all(found[3] >= gaps)
        np.testing.assert_allclose(found[3], gaps, rtol=1e-5, atol=1e-6)
        fine = read_tile(server, 0, "cosine", "label", (0, 1, 2), (150, 150))
        np.testing.assert_array_equal(fine[:3], expected[:3, 64:128, 128:150].astype(np.float32))
        assert server.get("tiles/0/cosine/label/0/2-1.bin")[0] == 404  # the mirror image of that
    monkeypatch.setattr(filling.Source, "read", pytest.fail)
    with serving(run, Cache(tmp_path / "cache")) as again:
        kept = read_tile(again, 0, "cosine", "label", (0, 1, 2), (150, 150))
        np.testing.assert_array_equal(kept, fine)


def test_a_pair_is_matched_again_with_the_value_of_the_store(server, run):
    facts = PairFacts.model_validate_json(server.get("pairs/1/5-17.json")[2])
    stored = float(run.similarity("late")[5, 17])
    assert facts.semantic == pytest.approx(stored, abs=1e-12)
    assert facts.note == ""
    assert facts.matches.matched.read().sum() == pytest.approx(stored, abs=1e-2)
    assert sorted(facts.matches.partners.read()[0]) == list(range(9))
    assert server.get("pairs/1/17-5.json")[0] == 404


def test_a_run_that_keeps_neighbours_has_their_pairs_alone(neighbours):
    found = neighbours.neighbours("late")
    other = int(found["index"][3, 0])
    row, column = sorted((3, other))
    with serving(neighbours) as server:
        facts = PairFacts.model_validate_json(server.get(f"pairs/1/{row}-{column}.json")[2])
        assert facts.semantic == pytest.approx(float(found["similarity"][3, 0]))
        known = {*found["index"][3].to_numpy().tolist()}
        strangers = [
            image
            for image in range(4, 24)
            if image not in known and 3 not in found["index"][image].to_numpy()
        ]
        assert server.get(f"pairs/1/3-{strangers[0]}.json")[0] == 404
        assert server.get("tiles/1/cosine/given/0/0-0.bin")[0] == 404
        _, content = server.wait_for("queries/1.json")
        assert Queries.model_validate_json(content).rows.shape == (24,)


def test_queries_are_those_of_the_page(server):
    _, content = server.wait_for("queries/1.json")
    queries = Queries.model_validate_json(content)
    assert [ranking.method for ranking in queries.rankings] == [
        "spatio-semantic",
        "semantic",
        "average pooling",
    ]
    assert queries.rankings[0].indices.shape == (24, 8)


def test_queries_follow_groups_that_have_changed(tmp_path):
    run, cache = make_run(tmp_path, 9, layers=("late",), pictures=False), Cache(None)
    hits = []
    for group in (None, "frames of a video"):
        table = pd.read_parquet(tmp_path / "data.parquet")
        table.assign(group=[group if index < 4 else None for index in range(9)]).to_parquet(
            tmp_path / "data.parquet"
        )
        run = srs.run(run.record.config)
        with serving(run, cache) as server:
            queries = Queries.model_validate_json(server.wait_for("queries/0.json")[1])
        of_first = [
            b64decode(ranking.indices.data)[: ranking.indices.shape[1]] for ranking in queries.rankings
        ]
        hits.append([{hit for hit in found if hit < 9} for found in of_first])
    assert hits == [[set(range(1, 9))] * 3, [set(range(4, 9))] * 3]


def test_pictures_come_from_the_images_and_only_if_they_are_the_same(copy):
    folder = copy.directory.path.parent
    (folder / "data 3.png").unlink()
    with serving(copy) as server:
        for size in ("small", "large"):
            status, headers, content = server.get(f"pictures/images/{size}/5.jpg")
            assert status == 200
            assert headers["Content-Type"] == "image/jpeg"
            assert content[:3] == b"\xff\xd8\xff"
        status, _, content = server.get("pictures/images/small/3.jpg")
        assert status == 410
        assert b"no such file" in content
        assert server.get("pictures/images/small/24.jpg")[0] == 404
        assert server.get("pictures/others/small/1.jpg")[0] == 404


@pytest.mark.parametrize(
    "path", ["", "orders/0/given.bin", "pairs/0/1-2.json", "pictures/images/small/0.jpg"]
)
def test_without_the_token_nothing_is_found(server, path):
    for token in ("", "wrong", TOKEN[:-1], TOKEN + "x", "%00", "..", "%C3%A9"):
        status, _, content = server.get(path, token=token)
        assert status in (400, 404)
        assert TOKEN.encode() not in content
    assert server.get(path)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/passwd",
        "%2e%2e/%2e%2e/etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "pictures/images/small/..%2f..%2frun.json",
        "pictures/..%2f/small/0.jpg",
        "tiles/0/cosine/..%2fgiven/0/0-0.bin",
        "tiles/0/cosine/given/0/0-0.bin/../../../../../run.json",
        "tiles/0/cosine/given/-1/0-0.bin",
        "tiles/0/cosine/given/0/99999999999999999999-0.bin",
        "tiles/0/cosine/given/0/%D9%A3-0.bin",
        "tiles/99/cosine/given/0/0-0.bin",
        "orders/0/unknown.bin",
        "run.json",
        "view/x",
    ],
)
def test_no_path_of_an_address_reaches_the_disk(server, path):
    assert server.get(path)[0] in (400, 404)


def test_other_names_of_the_server_are_refused(server):
    for host in (
        "attacker.example",
        "attacker.example:80",
        f"localhost.attacker.example:{server.port}",
        "",
    ):
        assert server.get("", Host=host)[0] in (400, 403)
    for host in (f"127.0.0.1:{server.port}", f"localhost:{server.port}"):
        assert server.get("", Host=host)[0] == 200


def test_nothing_can_be_changed_and_no_site_can_embed_it(server):
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert server.get("", method=method)[0] in (403, 404, 405)
    status, headers, content = server.get("")
    assert status == 200
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert b"connect-src 'self'" in content


def test_damage_is_reported_with_the_request(copy, monkeypatch):
    store = TileStore(copy.directory.tiles, "late")
    path = next(path for path in (store.group / "tiles" / "c").rglob("*") if path.is_file())
    path.write_bytes(b"broken")
    with serving(copy) as server:
        status, _, content = server.get("tiles/1/cosine/given/0/0-0.bin")
        assert status == 500
        assert path.name in content.decode()
        for _ in range(2):
            assert server.get("tiles/1/cosine/label/0/0-0.bin")[0] == 500
        assert server.get("tiles/0/cosine/given/0/0-0.bin")[0] == 200


def test_browsers_keep_a_tile_until_a_session_has_written_chunks(copy, monkeypatch):
    monkeypatch.setattr("semrsm_dist.report.view.live.LOOK_SECONDS", 0.0)
    tile = "tiles/0/cosine/given/0/0-0.bin"
    inventory = copy.directory.path / "inventory.parquet"
    with serving(copy) as server:
        status, headers, content = server.get(tile)
        assert status == 200
        assert server.get(tile, **{"If-None-Match": headers["ETag"]})[::2] == (304, b"")
        os.utime(inventory, ns=(0, inventory.stat().st_mtime_ns + 10**9))
        status, later, again = server.get(tile, **{"If-None-Match": headers["ETag"]})
        assert (status, again) == (200, content)
        assert later["ETag"] != headers["ETag"]


def test_an_unfinished_run_shows_what_there_is(copy):
    store = TileStore(copy.directory.tiles, "late")
    store.begin()
    next(path for path in (store.group / "tiles" / "c").rglob("*") if path.is_file()).unlink()
    live = LiveRun(copy)
    assert [layer.name for layer in live.describe().layers] == ["early"]
    assert "late is not complete yet" in live.page()
    live.close()


def test_a_run_that_cannot_be_written_to_is_served_from_memory(copy, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    with contextlib.closing(LiveRun(copy)) as live:
        assert live.cache.folder is None
        assert "kept in memory" in live.page()
        assert live.tile("late", "cosine", "given", Tile(0, 0, 0))[1] == 1.0
    assert not (copy.directory.path / "view").exists()


def test_what_is_kept_is_in_the_run_and_checked(tmp_path, caplog):
    cache = Cache(tmp_path)
    cache.write("maps/1", b"content")
    assert Cache(tmp_path).read("maps/1") == b"content"
    assert Cache(tmp_path).read("maps/2") is None
    for damage in (b"", b"cont", b"contend1234", b"content\0\0\0\0"):
        (tmp_path / "maps" / "1").write_bytes(damage)
        assert Cache(tmp_path).read("maps/1") is None
    assert "made again" in caplog.text
    (tmp_path / "more").write_text("a file")
    cache.write("more/1", b"content")
    assert cache.read("more/1") == b"content"
    assert "kept in memory" in caplog.text


def test_the_cache_makes_room(tmp_path, monkeypatch):
    monkeypatch.setattr("semrsm_dist.report.view.cache.FOLDER_BYTES", 1000)
    monkeypatch.setattr("semrsm_dist.report.view.cache.MEMORY_BYTES", 100)
    cache = Cache(tmp_path)
    for index in range(50):
        cache.write(f"maps/{index}", bytes(100))
        os.utime(tmp_path / "maps" / str(index), (index, index))
        assert sum(path.stat().st_size for path in (tmp_path / "maps").iterdir()) <= 1000 + 104
    assert cache.read("maps/49") == bytes(100)
    assert cache.read("maps/0") is None


def test_the_address_without_its_last_slash_leads_to_the_page(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    for path, status, target in ((TOKEN, 302, f"/{TOKEN}/"), ("wrong", 404, None)):
        connection.request("GET", f"/{path}")
        response = connection.getresponse()
        response.read()
        assert (response.status, response.headers["Location"]) == (status, target)
        assert response.headers["Server"] == "semrsm"
    connection.close()


def test_what_is_no_request_is_answered_and_not_logged(server, caplog):
    with socket.create_connection(("127.0.0.1", server.port), 60) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nbroken header\r\n\r\n")
        answer = connection.makefile("rb").read().lower()
        assert b" 400 " in answer
        assert b"aiohttp" not in answer
    assert "Error handling request" not in caplog.text


@pytest.mark.parametrize("host", ["203.0.113.1", "a" * 70])
def test_a_host_that_is_not_this_machine_is_named(host):
    with pytest.raises(StorageError, match="choose another --host"), listen(host, 0):
        pass


def test_a_damaged_run_is_reported_before_an_address_is(copy, capsys):
    (copy.directory.path / "images.parquet").unlink()
    assert main(["view", str(copy.directory.path), "--no-browser"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "start the run's command, which makes it anew" in err


def test_the_remedy_of_a_message_is_not_cut():
    remedy = f"{'a' * 300}; choose b"
    assert first_line(StorageError(remedy)) == remedy
    assert first_line(ValueError(remedy)) == f"{'a' * 200}\N{HORIZONTAL ELLIPSIS}"


def test_a_port_that_is_taken_is_named(run, capsys):
    with serving(run) as server:
        assert main(["view", str(run.directory.path), "--no-browser", "--port", str(server.port)]) == 1
    assert "choose another --port" in capsys.readouterr().err


def test_a_port_that_does_not_exist_is_refused(run, capsys):
    assert main(["view", str(run.directory.path), "--no-browser", "--port", "70000"]) == 2
    assert "from 0 to 65535" in capsys.readouterr().err


def test_a_site_has_the_page_and_the_tiles_as_files(run, tmp_path, capsys):
    folder = tmp_path / "site"
    assert main(["view", str(run.directory.path), "--bundle", str(folder)]) == 0
    assert "http.server" in capsys.readouterr().out
    page = (folder / "index.html").read_text()
    start = page.index(">", page.index('id="data"')) + 1
    data = Data.model_validate_json(page[start : page.index("</script>", start)])
    assert [layer.tiles.orders for layer in data.layers] == [["given", "label", "cluster"]] * 2
    assert all(layer.maps is None and layer.queries and layer.matches for layer in data.layers)
    for order in data.layers[1].tiles.orders:
        images = np.fromfile(folder / "orders" / "1" / f"{order}.bin", "<u4")
        found = np.fromfile(folder / "tiles" / "1" / "cosine" / order / "0" / "0-0.bin", "<f4")
        expected = expected_planes(run, "late", (images, images))[:3].astype(np.float32)
        np.testing.assert_array_equal(found.reshape(4, 24, 24)[:3], expected)
    with pytest.raises(ConfigError, match="not an empty folder"):
        write_site(run, folder, None)
