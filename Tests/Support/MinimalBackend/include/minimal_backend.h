// The least that a vhost-user disk behind an IOMMU can do: what a question and an invalidation cost there at the very least.
// Linux; one queue, a split ring of up to 256, addresses below 4 GiB.
#pragma once

// Serves the front-end at the other end of a socket, and returns when it is gone: 0, or -errno. Of a request it looks at the descriptors,
// asks for every page that it was not told of, all at once, and says that it is done; data it never touches. One thread, no
// locks, no rules: not for any guest that is not the benchmark's own. At the end it prints what it asked and was told.
int minimal_backend_serve(int connection);
