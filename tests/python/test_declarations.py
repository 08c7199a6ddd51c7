"""The schema that editors use: every declaration of the repository is right by it, and what is wrong is wrong by it, too."""

import json
import pathlib
import tomllib
import unittest

import fastjsonschema

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "docs/declarations.schema.json"
HEAD = "#:schema "

WRONG = {
    "an unknown field": '[[stream]]\n[stream.config]\nname = "A"\nmax_agee = "1h"',
    "an unknown field of an environment": '[[stream]]\n[stream.config]\nname = "A"\n[stream.production]\nreplica = 3',
    "an unknown field within": '[[stream]]\n[stream.config]\nname = "A"\nsources = [{ nam = "B" }]',
    "no time": '[[stream]]\n[stream.config]\nname = "A"\nmax_age = "1 hour"',
    "no size": '[[stream]]\n[stream.config]\nname = "A"\nmax_bytes = "1GB"',
    "another word": '[[stream]]\n[stream.config]\nname = "A"\nretention = "workqeue"',
    "another type": '[[bucket]]\n[bucket.config]\nbucket = "b"\nhistory = "many"',
    "too many": '[[bucket]]\n[bucket.config]\nbucket = "b"\nhistory = 65',
    "no stream": '[[consumer]]\n[consumer.config]\ndurable_name = "c"',
    "an unknown code": '[[stream]]\nallow = ["discard-old"]\n[stream.config]\nname = "A"',
    "an unknown entry": '[[strem]]\n[strem.config]\nname = "A"',
}

RIGHT = """
owner = "chat"
environments = ["dev", "staging"]
[variables]
copies = { default = 1, staging = 3 }
region = {}
[[stream]]
allow = ["discards-old"]
[stream.config]
name = "A-${region}"
num_replicas = "${copies}"
max_age = "${age}"
max_bytes = 1024
subjects = ["@catalog:high", "x.>"]
[stream.staging]
metadata = { team = "chat" }
"""


class Schema(unittest.TestCase):
    def setUp(self):
        self.check = fastjsonschema.compile(json.loads(SCHEMA.read_text()))

    def test_declarations_are_right_and_name_the_schema(self):
        folders = [ROOT / "streams", ROOT / "consumers", ROOT / "examples/streams-by-service"]
        files = [file for folder in folders for file in sorted(folder.rglob("*.toml"))]
        self.assertGreater(len(files), 20)
        for file in files:
            with self.subTest(file=file.relative_to(ROOT)):
                text = file.read_text()
                self.check(tomllib.loads(text))
                head = text.splitlines()[0]
                self.assertTrue(head.startswith(HEAD))
                self.assertEqual((file.parent / head.removeprefix(HEAD)).resolve(), SCHEMA)

    def test_conveniences_are_right(self):
        self.check(tomllib.loads(RIGHT))

    def test_mistakes_are_wrong(self):
        for name, text in WRONG.items():
            with self.subTest(name), self.assertRaises(fastjsonschema.JsonSchemaValueException):
                self.check(tomllib.loads(text))


if __name__ == "__main__":
    unittest.main()
