"""Where a ledger lies: an SQLite file in a folder, or a PostgreSQL database and a folder for its key. What a forger does
to one is written once for both."""

import os
import shutil
import sqlite3
import subprocess

# Columns that say which row it is, and all of them; PostgreSQL's tables have a prefix and another name for the tree.
TABLES = {"leaves": (("idx",), ("idx", "bytes")), "nodes": (("level", "idx"), ("level", "idx", "hash")),
          "tree": ((), ("size",)), "checkpoints": (("size",), ("size", "note"))}


def as_bytes(value):
    """A note is text in SQLite and bytes in PostgreSQL."""
    return value.encode() if isinstance(value, str) else value


class SqlitePlace:
    """A folder with ledger.sqlite."""

    def __init__(self, folder):
        self.folder = folder
        self.word = folder
        self.options = ["--data", folder]
        self.file = os.path.join(folder, "ledger.sqlite")

    def begun(self):
        """Whether there is a ledger."""
        return os.path.exists(self.file)

    def copy(self, folder):
        """The same ledger once more."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return SqlitePlace(folder)

    def drop(self):
        """Gives the room back."""
        shutil.rmtree(self.folder)

    def rows(self, table):
        """All rows of a table, in an order that is always the same."""
        with sqlite3.connect(self.file) as connection:
            rows = connection.execute(f"SELECT {', '.join(TABLES[table][1])} FROM {table} ORDER BY 1, {len(TABLES[table][1])}").fetchall()
        connection.close()
        return [tuple(as_bytes(value) for value in row) for row in rows]

    def change(self, statements):
        """Runs (SQL with ?, values) in one transaction; false where the database does not let it."""
        connection = sqlite3.connect(self.file)
        try:
            for sql, values in statements:
                connection.execute(sql, values)
            connection.commit()
        except sqlite3.IntegrityError:  # another row has that key
            return False
        finally:
            connection.close()
        return True

    def update(self, table, keys, column, value):
        """A statement that alters one value."""
        where = " AND ".join(f"{name} = ?" for name in TABLES[table][0]) or "1"
        # A note is text, and keeps its type when its bytes are altered, UTF-8 or not.
        given = "CAST(? AS TEXT)" if column == "note" else "?"
        return f"UPDATE {table} SET {column} = {given} WHERE {where}", [value, *keys]

    def clear(self, table, where=""):
        """A statement that deletes rows."""
        return f"DELETE FROM {table} {where}", []

    def insert(self, table, row):
        """A statement that adds a row."""
        return f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", list(row)


class PostgresPlace:
    """A database of a server, and a folder for the key."""

    def __init__(self, folder, server, name):
        self.folder = folder
        self.server = server
        self.name = name
        self.url = server.url(name)
        self.word = f"{folder},{self.url}"
        self.options = ["--data", folder, "--database", self.url]

    def begun(self):
        """Whether there is a ledger."""
        return self.server.query(self.name, "SELECT to_regclass('fieldprint_ledger') IS NOT NULL") == ["t"]

    def copy(self, folder):
        """The same ledger once more."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return PostgresPlace(folder, self.server, self.server.create(template=self.name))

    def drop(self):
        """Gives the room back."""
        self.server.drop(self.name)
        shutil.rmtree(self.folder)

    @staticmethod
    def table(name):
        """A table's name here."""
        return "fieldprint_ledger" if name == "tree" else f"fieldprint_{name}"

    def rows(self, table):
        """All rows of a table, in an order that is always the same."""
        columns = TABLES[table][1]
        shown = [f"encode({name}, 'hex')" if name in ("bytes", "hash", "note") else name for name in columns]
        lines = self.server.query(self.name, f"SELECT {', '.join(shown)} FROM {self.table(table)} ORDER BY 1, {len(columns)}")
        return [tuple(bytes.fromhex(text) if name in ("bytes", "hash", "note") else int(text)
                      for name, text in zip(columns, line.split("|"))) for line in lines]

    def change(self, statements):
        """Runs statements in one transaction; false where the database does not let it."""
        script = "BEGIN;\n" + ";\n".join(statements) + ";\nCOMMIT;\n"
        try:
            self.server.query(self.name, script)
        except subprocess.CalledProcessError as failed:
            if "duplicate key" in failed.stderr:
                return False
            raise AssertionError(failed.stderr) from failed
        return True

    @staticmethod
    def literal(value):
        """A value as SQL writes it."""
        return str(value) if isinstance(value, int) else f"'\\x{value.hex()}'::bytea"

    def update(self, table, keys, column, value):
        """A statement that alters one value."""
        where = " AND ".join(f"{name} = {key}" for name, key in zip(TABLES[table][0], keys)) or "true"
        return f"UPDATE {self.table(table)} SET {column} = {self.literal(value)} WHERE {where}"

    def clear(self, table, where=""):
        """A statement that deletes rows."""
        return f"DELETE FROM {self.table(table)} {where}"

    def insert(self, table, row):
        """A statement that adds a row."""
        return f"INSERT INTO {self.table(table)} VALUES ({', '.join(map(self.literal, row))})"
