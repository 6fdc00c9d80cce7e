"""Converts the Sigma rules by pySigma and prints, for each file, the queries that came of it, as JSON.

usage: convert.py RULE.yml...
"""

import json
import pathlib
import sys

from sigma.backends.elasticsearch import LuceneBackend
from sigma.backends.kusto import KustoBackend
from sigma.collection import SigmaCollection
from sigma.pipelines.microsoftxdr import microsoft_xdr_pipeline


def converted(path):
    rules = SigmaCollection.from_yaml(path.read_text(encoding="utf-8"))
    queries = {"lucene": LuceneBackend().convert(rules)}
    # Defender has tables for what sensors see; the guard's own events lie in another table.
    if any(rule.logsource.category for rule in rules):
        backend = KustoBackend(processing_pipeline=microsoft_xdr_pipeline())
        queries["kql"] = backend.convert(rules)
    return queries


print(json.dumps({pathlib.Path(name).name: converted(pathlib.Path(name)) for name in sys.argv[1:]}))
