"""vLLM's own server as a program, which imports it sooner: `python -m gadfly.engine.server ARGUMENT...`."""

from gadfly.imports import quick_imports


def main() -> None:
    with quick_imports():
        from vllm.entrypoints.launchers.api_server import entry
    entry.main()


if __name__ == "__main__":
    main()
