"""Answers of the Python libraries that checkpoints are made for. Reads one JSON request on stdin, writes JSON to stdout.

{"templates": {name: source}, "cases": [variables], "now": ISO date} -> {name: [{"text"} or {"error"}]}, by jinja2 set up
as transformers does it. {"tokenizers": {name: path of a tokenizer.json}, "texts": [text]} -> {name: [[id]]}, by
tokenizers, without the tokens that its post-processor adds.
"""

import datetime
import json
import sys


def render(request):
    import jinja2
    from jinja2 import ext, nodes, sandbox

    class Generation(ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        def _body(self, caller):
            return caller()

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    now = datetime.datetime.fromisoformat(request["now"])
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = now.strftime
    answers = {}
    for name, source in request["templates"].items():
        template = environment.from_string(source)
        answers[name] = []
        for variables in request["cases"]:
            try:
                answers[name].append({"text": template.render(**variables)})
            except Exception as error:
                answers[name].append({"error": f"{type(error).__name__}: {error}"})
    return answers


def tokenize(request):
    from tokenizers import Tokenizer

    answers = {}
    for name, path in request["tokenizers"].items():
        tokenizer = Tokenizer.from_file(path)
        answers[name] = [
            tokenizer.encode(text, add_special_tokens=False).ids for text in request["texts"]
        ]
    return answers


request = json.load(sys.stdin)
json.dump(render(request) if "templates" in request else tokenize(request), sys.stdout)
