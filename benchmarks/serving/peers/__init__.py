"""What ours is compared with: a bare grpcio server, and servers that others publish.

Each is one small file around the same `Twin`, so that what differs is the server and not the work.
`install.py` makes an environment for each published one; a peer without one is reported as absent.
"""
