"""A server that speaks vLLM's dialect over a tiny real model in this process, and that can be made to fail."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from stepalign import config
from stepalign.rollouts import Request
from stepalign.rollouts.transformers import TransformersSampler

BASE = "solver"


@dataclass
class Served:
    """What a server holds, and its faults."""

    model: PeftModel
    url: str = ""
    adapters: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    fault: str = ""
    """`stale`: keeps the first adapter; `stale once`: for one load; `missing`: answers as the base; `wrong`: an adapter
    of its own; `off`: log-probabilities of completions are half a nat too low; `no logprobs`: completions have none;
    `abort once`: one completion is cut off; `drop`; `once`: one 500; `late`: one completion is lost when it has been
    under way for half a second; a status: its answer to everything; `PATH STATUS`: its answer to that path."""

    def restart(self) -> None:
        self.adapters.clear()

    def load(self, name: str, folder: Path) -> tuple[int, Any]:
        if name in self.adapters:
            return 400, {"error": {"message": f"The lora adapter '{name}' has already been loaded."}}
        weights = load_file(folder / "adapter_model.safetensors")
        if self.fault in ("stale", "stale once") and self.adapters:
            weights = next(iter(self.adapters.values()))
            self.fault = "" if self.fault == "stale once" else "stale"
        if self.fault == "wrong":
            weights = {key: torch.randn_like(value) for key, value in weights.items()}
        self.adapters[name] = weights
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        name = body["model"]
        if name != BASE and name not in self.adapters:
            return 404, {"error": {"message": f"The model `{name}` does not exist."}}
        adapter = "default" if name != BASE and self.fault != "missing" else None
        if adapter:
            set_peft_model_state_dict(self.model, self.adapters[name])
        if "prompt_logprobs" in body:
            ids = torch.tensor([body["prompt"]])
            with torch.no_grad(), self.model.disable_adapter() if adapter is None else torch.no_grad():
                rows = self.model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].tolist()
            scored = [{str(token): {"logprob": row}} for token, row in zip(body["prompt"][1:], rows, strict=True)]
            return 200, {"choices": [{"token_ids": [0], "prompt_logprobs": [None, *scored]}]}
        eos = frozenset(body["stop_token_ids"])
        sampling = config.SamplingConfig(
            temperature=body["temperature"],
            top_p=body["top_p"],
            top_k=body["top_k"],
            max_new_tokens=body["max_tokens"],
        )
        request = Request(id="", prompt_ids=tuple(body["prompt"]), seed=body.get("seed", 0))
        sampler = TransformersSampler(self.model, eos_ids=eos, batch_size=1)
        (sampled,) = sampler.sample([request], sampling, adapter=adapter)
        ids = torch.tensor([[*body["prompt"], *sampled.ids]])
        with torch.no_grad(), self.model.disable_adapter() if adapter is None else torch.no_grad():
            rows = self.model(ids).logits[0, len(body["prompt"]) - 1 : -1].log_softmax(-1)
        logprobs = (rows.gather(-1, torch.tensor(sampled.ids)[:, None])[:, 0] - 0.5 * (self.fault == "off")).tolist()
        choice = {"finish_reason": sampled.finish, "token_ids": sampled.ids, "logprobs": {"token_logprobs": logprobs}}
        if self.fault == "no logprobs":
            choice["logprobs"] = None
        if self.fault == "abort once":
            self.fault, half = "", len(sampled.ids) // 2
            cut = {"token_ids": sampled.ids[:half], "logprobs": {"token_logprobs": logprobs[:half]}}
            choice |= {"finish_reason": "abort", **cut}
        return 200, {"choices": [choice]}

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        self.requests.append((path, body))
        where, _, status = self.fault.rpartition(" ")
        if self.fault == "once" or (status.isdigit() and path.endswith(where)):
            self.fault = "" if self.fault == "once" else self.fault
            return int(status) if status.isdigit() else 500, {"error": {"message": "out of luck"}}
        match path:
            case "/v1/load_lora_adapter":
                return self.load(body["lora_name"], Path(body["lora_path"]))
            case "/v1/unload_lora_adapter":
                if self.fault != "stale" and self.adapters.pop(body["lora_name"], None) is None:
                    return 404, {"error": {"message": "no such adapter"}}
                return 200, "Success"
            case "/v1/completions":
                return self.complete(body)
        return 404, {"error": {"message": path}}


@contextmanager
def serve(folder: Path, rank: int = 4, alpha: float = 8) -> Iterator[Served]:
    """A server over the model in a folder, with room for an adapter of this rank on every projection."""
    targets = list(config.LoraConfig().target_modules)
    lora = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM")
    served = Served(get_peft_model(AutoModelForCausalLM.from_pretrained(folder), lora).eval())

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            late = served.fault == "late" and "stop_token_ids" in body
            if late:
                time.sleep(0.5)
                served.fault = ""
            if late or served.fault == "drop":
                self.close_connection = True
                return
            with served.lock:
                status, value = served.answer(self.path, body)
            text = value if isinstance(value, str) else json.dumps(value)
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(value, str) else "application/json")
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
