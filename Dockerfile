# One image for the server, the worker and every other command. It holds Debian's Python, the libraries that Python
# and the wheels need, and the service: no shell, no package manager, nothing to be written to but /tmp.

FROM debian:trixie-20260918-slim AS build

# The root file system, from Debian's packages. What they are stays noted where scanners look for it.
WORKDIR /debs
RUN apt-get update \
 && apt-get install -y --no-install-recommends binutils ca-certificates python3.13-venv \
 && apt-get download \
      base-files gcc-14-base libbz2-1.0 libc6 libexpat1 libffi8 libgcc-s1 liblzma5 libpython3.13-minimal \
      libpython3.13-stdlib libssl3t64 libstdc++6 libuuid1 libzstd1 netbase python3.13-minimal zlib1g \
 && mkdir -p /image/var/lib/dpkg/status.d \
 && set -e; for deb in *.deb; do \
      dpkg-deb --extract "$deb" /image; \
      dpkg-deb --field "$deb" > "/image/var/lib/dpkg/status.d/${deb%%_*}"; \
    done; \
    rm -rf /image/usr/share/doc /image/usr/share/man /image/usr/share/lintian /image/usr/lib/*/gconv
COPY deploy/passwd /image/etc/passwd
RUN cp --dereference --parents /etc/ssl/certs/ca-certificates.crt /image \
 && install -d -m 1777 /image/tmp

# The service in an environment of its own, with the versions that the tests ran with.
WORKDIR /source
RUN python3.13 -m venv /build && python3.13 -m venv --without-pip /opt/mastery
COPY pyproject.toml constraints.txt README.md hatch_build.py ./
COPY protos protos
COPY mastery_grpc mastery_grpc
COPY clients/python clients/python
RUN --mount=type=cache,target=/root/.cache/pip \
    /build/bin/pip wheel --quiet --no-deps --wheel-dir /wheels . \
 && /build/bin/pip --python /opt/mastery/bin/python3.13 install --quiet --no-compile -c constraints.txt \
      "$(echo /wheels/*.whl)[server]"

# What no process reads: tests, type stubs, debugging symbols. Libraries that auditwheel has rewritten bear no strip.
RUN find /opt/mastery/lib -type d -name tests -prune -exec rm -r {} + \
 && find /opt/mastery/lib -name '*.pyi' -delete \
 && find /opt/mastery/lib -name '*.so' -not -path '*.libs/*' -exec strip --strip-unneeded {} + \
 && cp --archive --parents /opt/mastery /image
# In the new root: this shows that nothing is missing there, and compiles just the modules that a start imports.
RUN chroot /image /opt/mastery/bin/mastery-grpc --help > /dev/null

FROM scratch
LABEL org.opencontainers.image.title="mastery-grpc" \
      org.opencontainers.image.description="One live mastery score for every student of a learning platform, served over gRPC."
COPY --from=build /image /
ENV PATH=/opt/mastery/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532:65532
EXPOSE 50051 50052 50053 9464
ENTRYPOINT ["/opt/mastery/bin/mastery-grpc"]
CMD ["serve"]
