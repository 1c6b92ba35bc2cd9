module twinserve.example/client

go 1.19
