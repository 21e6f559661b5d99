# The README's commands in Debian 13: docker build -t noisin . && docker run --rm -it noisin
# On Arm this emulates x86-64: MXNet's wheel for aarch64 needs the Arm Performance Libraries, which Debian lacks.
FROM --platform=linux/amd64 debian:trixie-slim
RUN apt-get update && apt-get install -y git make gcc python3-dev python3-venv
WORKDIR /noisin
COPY . .
RUN make venv
CMD ["make", "demo"]
