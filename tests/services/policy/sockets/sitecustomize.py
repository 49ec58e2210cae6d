"""On the path of a server under test: plain sockets in the place of NCCL, which needs two GPUs.

Python imports this at the start of every process of the server.
"""

import services.transport.nccl as nccl
from tests.support.socket_group import join_sockets

nccl.join_group = join_sockets
