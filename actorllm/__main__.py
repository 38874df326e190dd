"""`python -m actorllm` is the same as `actorllm`."""

import sys

from actorllm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
