"""``python -m deployments.servers``: start the local servers."""

import sys

from deployments.servers.local_servers import main

if __name__ == "__main__":
    sys.exit(main())
