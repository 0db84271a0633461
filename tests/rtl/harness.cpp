// Carries a memory-mapped file over to the simulated bus: CTRL's START is the doorbell.
//
//     cores SLOT FILE        prints "ready", then serves until its parent ends
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "Vcores.h"
#include "verilated.h"

static Vcores *top;

static void tick() {
  top->clk = 0;
  top->eval();
  top->clk = 1;
  top->eval();
}

static void put(unsigned offset, uint32_t value) {
  top->address = offset;
  top->data = value;
  top->write = 1;
  tick();
  top->write = 0;
}

static uint32_t get(unsigned offset) {
  top->address = offset;
  tick();
  return top->q;
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  int fd = open(argv[2], O_RDWR);
  void *at = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (fd < 0 || at == MAP_FAILED) return 1;
  volatile uint32_t *window = static_cast<volatile uint32_t *>(at);
  top = new Vcores;
  top->slot = atoi(argv[1]);
  top->write = 0;
  for (unsigned offset = 0x10; offset < 0x38; offset += 4) window[offset / 4] = get(offset);
  window[0] = get(0);
  puts("ready");
  fflush(stdout);
  const pid_t parent = getppid();
  for (unsigned turn = 0;; turn++) {
    if (!(window[0] & 1)) {
      usleep(20);
      if (turn % 1024 == 0 && getppid() != parent) return 0;
      continue;
    }
    __sync_synchronize();
    for (unsigned offset = 0x40; offset < 0x80; offset += 4) put(offset, window[offset / 4]);
    put(0, 1);
    while (!(get(0) & 2)) {
    }
    for (unsigned offset = 0x80; offset < 0x90; offset += 4) window[offset / 4] = get(offset);
    __sync_synchronize();
    window[0] = get(0);
  }
}
