"""A process that owns a stack: prints what it started, then waits to be killed."""

import json
import sys
import time

from tenfold.stack import Stack
from tests.stack.conftest import settings_for

if __name__ == "__main__":
    with Stack(settings_for(database="database" in sys.argv)) as stack:
        pids = [pid for server in stack.servers for pid in server.pids()]
        told = {"folder": str(stack.probe_address.parent), "pids": pids, "url": stack.url}
        print(json.dumps(told), flush=True)
        time.sleep(120)
