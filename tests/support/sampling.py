"""An engine as a transport, whose distribution is known and may be bent."""

import math
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import orjson


class FakeEngine:
    """A model of 200 tokens whose logits are known, as a transport. `draw` may bend the distribution."""

    def __init__(self, *, sharpen: float = 1.0, failures: int = 0, flips: int = 0) -> None:
        self.sharpen = sharpen
        self.failures = failures  # of the first requests
        self.flips = flips  # of the first samples, which are bent
        self.logits = [random.Random(token).gauss(0, 3) for token in range(200)]
        self.draws = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.failures:
            self.failures -= 1
            return httpx.Response(503, json={"error": {"message": "busy"}})
        body = orjson.loads(request.content)
        if request.url.path == "/tokenize":
            return httpx.Response(200, json={"tokens": list(range(100) if "messages" in body else range(200))})
        total = math.log(math.fsum(map(math.exp, self.logits)))
        if "logprob_token_ids" in body:
            told = [
                {"token": f"token_id:{token}", "logprob": self.logits[token] - total}
                for token in body["logprob_token_ids"]
            ]
            choice = {"index": 0, "finish_reason": "length", "logprobs": {"content": [{"top_logprobs": told}]}}
            return httpx.Response(200, json={"choices": [choice]})
        return httpx.Response(200, json={"choices": self._choices(body)})

    def _choices(self, body: dict[str, object]) -> list[dict[str, object]]:
        bias = body["logit_bias"]
        assert isinstance(bias, dict)
        logits = [logit + bias.get(str(token), 0.0) for token, logit in enumerate(self.logits)]
        temperature, n = body["temperature"], body["n"]
        assert isinstance(temperature, int | float)
        assert isinstance(n, int)
        if temperature == 0:
            return [{"index": 0, "finish_reason": "length", "token_ids": [logits.index(max(logits))]}]
        is_bent = self.draws < self.flips or not self.flips
        sharpness = (self.sharpen if is_bent else 1.0) / temperature
        weights = [math.exp(sharpness * (logit - max(logits))) for logit in logits]
        drawn = random.Random(str(body["seed"])).choices(range(200), weights, k=n)
        self.draws += n
        return [{"index": index, "finish_reason": "length", "token_ids": [token]} for index, token in enumerate(drawn)]


@contextmanager
def served(fake: FakeEngine) -> Iterator[str]:
    """The fake engine on a port of this machine, during the block; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            response = fake(httpx.Request("POST", f"http://engine{self.path}", content=content))
            self.send_response(response.status_code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(response.content)))
            self.end_headers()
            self.wfile.write(response.content)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
