module livepatch

go 1.26
