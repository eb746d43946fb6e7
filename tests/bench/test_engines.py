"""Ranks of torchrun, actors of Ray, and runs in an object store: whatever dies, the rows are those of a quiet run."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from threading import Event, get_ident
from typing import Any
from unittest.mock import MagicMock, Mock

import pyarrow as pa
import pytest

from shapleycam.bench import cluster
from shapleycam.bench.actors import Measurer
from shapleycam.bench.batches import Job, Read, _read, rows_of
from shapleycam.bench.claims import Claims
from shapleycam.bench.configuration import Machine
from shapleycam.bench.datasets import Item
from shapleycam.bench.loaded import Loaded
from shapleycam.bench.places import files, locate, write_whole
from shapleycam.bench.planned import Plan
from shapleycam.bench.run import Step
from shapleycam.bench.store import read_rows
from tiny import Planned, finish

pytestmark = [
    pytest.mark.large,
    pytest.mark.xdist_group("engines"),  # one after the other: an address that is "auto" finds any cluster here
    pytest.mark.skipif(os.name != "posix", reason="signals"),
]
TESTS = Path(__file__).parents[1]
PARTS = 6
TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "--max-restarts",
    "2",
]

Bench = Callable[..., subprocess.Popen[str]]


@pytest.fixture(autouse=True)
def one_after_the_other(request: pytest.FixtureRequest) -> None:
    """An xdist that overlooks groups, as 3.8.0 does under pytest 9.2.0, would start clusters that find each other."""
    assert "PYTEST_XDIST_WORKER" not in os.environ or request.node.nodeid.endswith("@engines"), "use --dist loadgroup"


@pytest.fixture
def bench(pictures: Path, tmp_path: Path) -> Bench:
    """Starts `shapleycam bench` as the fixture `planned` would, in a process of its own."""

    def start(
        *arguments: str, model: str = "network", part: int = 4, by: list[str] | None = None, source: str = str(pictures),
        out: str = str(tmp_path / "run"), **environment: str,
    ) -> subprocess.Popen[str]:  # fmt: skip
        call = [
            *(by or [sys.executable]), "-m", "shapleycam", "bench", source, "--out", out, "--models", f"tiny:{model}",
            "--layers", "gap,conv", "--methods", "GradCAM,ShapleyCAM,RandomCAM", "--part", str(part), "--batch", "2",
            "--no-channels-last", *arguments,
        ]  # fmt: skip
        found = os.pathsep.join((str(TESTS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)))
        surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": found, **environment}
        return subprocess.Popen(
            call, cwd=TESTS, env=surroundings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


def end(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for a process, which is to end with this code; what it said."""
    out, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    return out + errors


def written(run: Path, count: int) -> None:
    """Wait for so many parts."""
    for _ in range(2400):
        if len(list(run.rglob("*.parquet"))) >= count:
            return
        time.sleep(0.05)
    raise AssertionError(f"{count} parts were not written")


def test_two_ranks_share_a_run_and_one_of_them_speaks(
    bench: Bench, planned: Planned, undisturbed: pa.Table, tmp_path: Path
) -> None:
    said = end(bench("--engine", "torchrun", by=TORCHRUN))
    assert said.count("all 6 parts complete") == said.count("loading tiny:network") == 1
    assert read_rows(tmp_path / "run").equals(undisturbed)
    assert not [
        name for name in files(tmp_path / "run") if name.suffix not in (".parquet",) and name.name != "run.json"
    ]


def test_a_killed_rank_is_started_again_and_passes_over_what_is_done(
    bench: Bench, planned: Planned, tmp_path: Path
) -> None:
    end(bench("--shard", "1/6", model="mortal"))  # begins the run, which makes passes too
    (part,) = (tmp_path / "run").rglob("*.parquet")
    before = part.stat().st_mtime_ns
    said = end(bench("--engine", "torchrun", by=TORCHRUN, model="mortal", DIES=str(tmp_path / "died")))
    assert (tmp_path / "died").exists()
    assert "6 parts complete" in said
    assert part.stat().st_mtime_ns == before
    assert read_rows(tmp_path / "run").equals(finish(planned("quiet", models="tiny:mortal")))


def test_ranks_of_unequal_speed_end_within_a_part_and_a_batch_of_each_other(bench: Bench, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    end(bench("--engine", "torchrun", part=1, by=TORCHRUN, model="slow", TRACE=str(trace)))
    ranks = trace.read_text().split()
    fast, slow = ranks.count("0"), ranks.count("1")
    assert fast > 2 * slow > 0
    tail = len(ranks) - max(place for place, rank in enumerate(ranks) if rank == "0") - 1
    assert tail <= 2 * (1 + 2 * 3)  # passes of the slow rank alone: one part at work, one that it had begun to decode


def test_a_process_that_torchrun_did_not_start_is_no_rank(bench: Bench) -> None:
    assert "RANK and LOCAL_RANK are not set" in end(bench("--engine", "torchrun"), 1)


def test_an_actor_decodes_the_next_part_while_its_network_is_at_one(
    planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned()
    first, second = plan.units[:2]
    begun, opened, threads = Event(), Event(), set[int]()

    def read(item: Item, crop: Any) -> Read:
        if item in plan.items_of(second):
            opened.set()
        return _read(item, crop)

    def measured(plan: Plan, loaded: Loaded, labels: Any, job: Job, reads: list[Read]) -> pa.Table:
        threads.add(get_ident())
        begun.set()
        assert job.unit != first or opened.wait(30)
        return rows_of(plan, loaded, labels, job, reads)

    get = Mock(side_effect=lambda there: there)
    monkeypatch.setattr("ray.get", get)
    monkeypatch.setattr("shapleycam.bench.batches._read", read)
    monkeypatch.setattr("shapleycam.bench.run.rows_of", measured)
    loaded = plan.load(first.model)
    actor = Measurer([plan], {first.model: loaded}, Mock())
    with ThreadPoolExecutor(2) as calls:
        one = calls.submit(actor, {"unit": [vars(first)]})
        assert begun.wait(30)
        two = calls.submit(actor, {"unit": [vars(second)]})
    assert [each.result()["failed"] for each in (one, two)] == [[""], [""]]
    assert len(threads) == 1
    assert [fetched.args[0] for fetched in get.call_args_list] == [plan, loaded]  # each once, for both units
    for unit, each in ((first, one), (second, two)):
        write_whole(unit.path(plan.run), each.result()["data"][0])
        assert plan.complete(unit)


def test_an_actor_that_is_killed_costs_no_row_and_a_run_may_change_its_engine(
    bench: Bench, planned: Planned, tmp_path: Path
) -> None:
    half = bench("--shard", "1/2", model="mortal")  # parts that another engine finds done
    end(half)
    end(bench("--engine", "ray", model="mortal", DIES=str(tmp_path / "died")))
    assert (tmp_path / "died").exists()
    assert read_rows(tmp_path / "run").equals(finish(planned("quiet", models="tiny:mortal")))


def test_a_driver_that_is_killed_goes_on_where_it_was(
    bench: Bench, planned: Planned, pictures: Path, tmp_path: Path
) -> None:
    driver = bench("--engine", "ray", "--actors", "1", model="slow", RANK="0", TRACE=str(tmp_path / "trace"))
    written(tmp_path / "run", 1)
    driver.kill()
    driver.communicate()
    assert len(list((tmp_path / "run").rglob("*.parquet"))) < PARTS
    done = end(bench("--engine", "ray", model="slow", RANK="0", TRACE=str(tmp_path / "trace")))
    assert "all 6 parts complete" in done
    environment = {"RANK": "0", "TRACE": str(tmp_path / "trace")}
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        assert read_rows(tmp_path / "run").equals(finish(planned("quiet", models="tiny:slow")))


def test_a_node_that_is_lost_costs_no_row(bench: Bench, planned: Planned, tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
lost = cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.remove_node(lost, allow_graceful=False)
    print("lost", flush=True)
cluster.shutdown()
"""
    environment = {**os.environ, "RANK": "0", "TRACE": str(tmp_path / "trace"), "PYTHONPATH": str(TESTS)}
    cluster = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, env=environment, cwd=TESTS,
    )  # fmt: skip
    assert cluster.stdin
    assert cluster.stdout
    try:
        address = cluster.stdout.readline().strip()
        # A node has room for two: one at least is on that which is lost.
        arguments = ("--engine", "ray", "--address", address, "--actors", "3")
        running = bench(*arguments, part=1, model="slow", RANK="0", TRACE=str(tmp_path / "trace"))
        written(tmp_path / "run", 2)
        print("now", file=cluster.stdin, flush=True)
        assert cluster.stdout.readline().strip() == "lost"
        assert len(list((tmp_path / "run").rglob("*.parquet"))) < 22
        assert "all 22 parts complete" in end(running)
    finally:
        cluster.communicate(timeout=60)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RANK", "0")
        patched.setenv("TRACE", str(tmp_path / "trace"))
        assert read_rows(tmp_path / "run").equals(finish(planned("quiet", models="tiny:slow", part=1)))


def test_a_part_is_written_although_the_next_one_hangs(bench: Bench, tmp_path: Path) -> None:
    end(bench("--shard", "1/6", model="asleep"))  # begins the run
    running = bench("--engine", "ray", "--actors", "1", model="asleep", SLEEPS="20")
    try:
        written(tmp_path / "run", 2)
    finally:
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)


def test_a_stall_ends_in_words_that_say_what_to_set(bench: Bench, tmp_path: Path) -> None:
    end(bench("--shard", "1/6", model="asleep"))  # begins the run; trying a layer would sleep as well
    said = end(bench("--engine", "ray", "--stall", "5", model="asleep", SLEEPS="1"), 1)
    assert "no actor has finished a batch for 5 s; 2 actors ask for 1 CPUs" in said
    assert "--actors" in said
    assert "--stall" in said


def test_actors_that_find_no_cpu_end_in_words_that_say_what_to_set(bench: Bench) -> None:
    script = """
import sys
import ray
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
ray.init(cluster.address, log_to_driver=False)

@ray.remote(num_cpus=1)
class Other:
    def works(self):
        return True

other = Other.remote()
ray.get(other.works.remote())
print(cluster.address, flush=True)
sys.stdin.read()
ray.shutdown()
cluster.shutdown()
"""
    cluster = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert cluster.stdout
    try:
        address = cluster.stdout.readline().strip()
        said = end(bench("--engine", "ray", "--address", address, "--actors", "1", "--stall", "5"), 1)
    finally:
        cluster.communicate(timeout=60)
    assert (
        "no actor has finished a batch for 5 s; 1 actor asks for 0.5 CPUs and 0 GPUs, and 0 of 1 CPUs are free" in said
    )
    assert "--batch" in said
    assert "--actors" not in said


def test_what_a_network_raises_in_an_actor_is_said_in_a_line(bench: Bench, tmp_path: Path) -> None:
    end(bench("--shard", "1/6", model="raising"))
    said = end(bench("--engine", "ray", model="raising", RAISES="1"), 1)
    assert "shapleycam: an actor failed at part" in said
    assert "ValueError: this network has no idea" in said
    assert "Traceback" not in said


def test_a_cluster_that_does_not_answer_is_said_at_once(bench: Bench) -> None:
    said = end(bench("--engine", "ray", "--address", "127.0.0.1:9"), 1)
    assert said.startswith("shapleycam: nobody answers at '127.0.0.1:9' (--address)")


def test_no_cluster_at_the_address_is_said(bench: Bench) -> None:
    said = end(bench("--engine", "ray", "--address", "auto"), 1)
    assert "Traceback" not in said
    assert "Ray" in said


@pytest.fixture(scope="module")
def bucket(pictures: Path) -> Iterator[str]:
    """A bucket of an S3 server on this machine, with the pictures in it."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patched.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patched.setenv(name, "x")
        root: Any = locate("s3://shapley")
        root.fs.mkdir("shapley")
        for name in files(pictures):
            (root / "val" / str(name)).write_bytes((pictures / name).read_bytes())
        yield "s3://shapley"
    server.stop()


def test_pictures_and_run_may_be_in_an_object_store(
    bench: Bench, planned: Planned, bucket: str, tmp_path: Path
) -> None:
    quiet = finish(planned("quiet", models="tiny:mortal"))
    where = {"source": f"{bucket}/val", "out": f"{bucket}/runs/a", "model": "mortal"}
    end(bench("--shard", "1/6", **where))  # begins the run, which makes passes too
    run = locate(f"{bucket}/runs/a")
    (part,) = (run / str(name) for name in files(run) if name.suffix == ".parquet")
    before = part.stat().st_mtime
    killed = bench(**where, DIES=str(tmp_path / "died"))
    killed.communicate(timeout=300)
    assert killed.returncode == -signal.SIGKILL
    both = [bench(**where), bench(**where)]
    assert all("all 6 parts complete" in end(each) for each in both)
    assert part.stat().st_mtime == before
    assert read_rows(run).equals(quiet)
    assert sorted({name.suffix for name in files(run)}) == [".json", ".parquet"]
    for arguments in (["table"], ["report", "--out", str(tmp_path / "report.html")]):
        call = [sys.executable, "-m", "shapleycam", arguments[0], f"{bucket}/runs/a", *arguments[1:]]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert "data:image/jpeg" in (tmp_path / "report.html").read_text()


def test_actors_measure_pictures_in_an_object_store_into_a_run_there(
    bench: Bench, undisturbed: pa.Table, bucket: str
) -> None:
    where = {"source": f"{bucket}/val", "out": f"{bucket}/runs/ray"}
    assert "all 6 parts complete" in end(bench("--engine", "ray", **where))
    assert read_rows(locate(where["out"])).equals(undisturbed)


def test_a_tar_and_a_list_in_an_object_store_are_read_where_they_are(
    planned: Planned, undisturbed: pa.Table, bucket: str, pictures: Path, tmp_path: Path
) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "val"), "tar", pictures))
    tar, listed = locate(f"{bucket}/val.tar"), locate(f"{bucket}/list.txt")
    tar.write_bytes(archive.read_bytes())
    names = sorted(str(name) for name in files(pictures))
    listed.write_bytes("\n".join([f"val/{names[0]}", *(f"{bucket}/val/{name}" for name in names[1:])]).encode())
    assert finish(planned("tar", source=tar)).drop_columns(["picture"]).equals(undisturbed.drop_columns(["picture"]))
    found = finish(planned("list", source=listed))
    assert found.num_rows == undisturbed.num_rows
    assert set(found["picture"].to_pylist()) == {f"val/{names[0]}", *(f"{bucket}/val/{name}" for name in names[1:])}


def test_a_store_that_cannot_be_reached_is_said_in_a_line(bench: Bench) -> None:
    environment = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    said = end(bench(out="s3://shapley/runs/b", **environment), 1)
    assert said.splitlines()[-1].startswith("shapleycam: ")
    assert "http://127.0.0.1:9" in said
    assert "Traceback" not in said


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own doing
def test_rays_driver_keeps_its_own_handler_of_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def init(**given: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as ray.init replaces it

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    before = signal.getsignal(signal.SIGTERM)
    with cluster._connected(Machine()):
        assert signal.getsignal(signal.SIGTERM) == before


def test_news_of_one_batch_again_and_again_are_no_progress(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    class Waiting:
        def iter_batches(self, **given: Any) -> Iterator[Any]:
            over.wait(60)
            yield from ()

    plan, over = planned(), Event()
    plan = replace(plan, machine=replace(plan.machine, engine="ray", stall=0.5))
    ray = MagicMock()
    ray.cluster_resources.return_value = ray.available_resources.return_value = {}
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(cluster, "POLL", 0.01)
    monkeypatch.setattr(cluster, "_dataset", lambda *given: Waiting())
    monkeypatch.setattr(cluster, "_portable", lambda *given: None)
    monkeypatch.setattr(cluster, "_told", lambda board: [("an actor that dies", Step(plan.units[0], 2))])
    steps = cluster._steps(plan, plan.missing(), Mock(spec=Claims))
    with pytest.raises(TimeoutError, match=r"no actor has finished a batch for 0.5 s"):
        for _ in islice(steps, 3000):
            pass
    over.set()


def test_who_leaves_early_ends_ray_datas_threads_first(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    class Executor(threading.Thread):  # as Ray Data's: it works on until it is shut down, and then its output ends
        def run(self) -> None:
            ended.wait(60)

        def shutdown(self, force: bool) -> None:
            ended.set()
            self.join()
            raise ConnectionError("the cluster is gone")  # which must not cost the parts that have come

    class Data:
        def iter_batches(self, **given: Any) -> Iterator[Any]:
            executor.start()
            executor.join()
            yield from ()

    plan, ended = planned(), Event()
    executor = Executor(name="StreamingExecutor-dataset_1_0", daemon=True)
    monkeypatch.setitem(sys.modules, "ray", MagicMock())
    monkeypatch.setattr(cluster, "POLL", 0.5)
    monkeypatch.setattr(cluster, "_dataset", lambda *given: Data())
    monkeypatch.setattr(cluster, "_portable", lambda *given: None)
    monkeypatch.setattr(cluster, "_told", lambda board: [])
    steps = cluster._steps(plan, plan.missing(), Mock(spec=Claims))
    next(steps)
    steps.close()
    assert not [each.name for each in threading.enumerate() if each is executor or each.name == "parts"]


def test_what_ends_the_actors_just_now_is_not_lost(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def iter_batches(self, **given: Any) -> Iterator[Any]:
            failed.wait(60)
            raise ActorDied("out of everything")
            yield

    class ActorDied(Exception):  # noqa: N818 - Ray's are no RuntimeError
        pass

    plan, failed = planned(), Event()
    plan = replace(plan, machine=replace(plan.machine, engine="ray"))

    def told(board: Any) -> list[Any]:  # while the driver asks, the actors end
        failed.set()
        for thread in threading.enumerate():
            if thread.name == "parts":
                thread.join(60)
        return []

    monkeypatch.setitem(sys.modules, "ray", MagicMock())
    monkeypatch.setitem(sys.modules, "ray.exceptions", MagicMock(RayError=ActorDied))
    monkeypatch.setattr(cluster, "POLL", 0.01)
    monkeypatch.setattr(cluster, "_dataset", lambda *given: Failing())
    monkeypatch.setattr(cluster, "_portable", lambda *given: None)
    monkeypatch.setattr(cluster, "_told", told)
    with pytest.raises(cluster.ActorError, match="out of everything"):
        for _ in cluster._steps(plan, plan.missing(), Mock(spec=Claims)):
            pass


def test_each_model_is_put_into_the_object_store_once(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        def iter_batches(self, **given: Any) -> Iterator[Any]:
            yield from ()

    def dataset(plan: Plan, left: Any, models: Any, board: Any) -> Nothing:
        assert len(left) == 2 * PARTS
        assert list(models) == names
        return Nothing()

    names = ["tiny:network", "tiny:mortal"]
    plan, ray = planned(), MagicMock()
    units = (*plan.units, *(replace(unit, model=names[1]) for unit in plan.units))
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(cluster, "_dataset", dataset)
    monkeypatch.setattr(cluster, "_portable", lambda plan, name: name)
    monkeypatch.setattr(cluster, "_told", lambda board: [])
    for _ in cluster._steps(plan, units, Mock(spec=Claims)):
        pass
    assert [put.args[0] for put in ray.put.call_args_list] == names


def test_rays_client_is_refused_for_ray_data_does_not_run_through_it() -> None:
    with pytest.raises(ValueError, match=r"Ray Data does not run through Ray's client; start this on a node"):
        Machine(engine="ray", address="ray://head:10001")
