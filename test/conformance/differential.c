/*
 * Carries out a script of calls on libblkio and prints one line for each: the value returned (0 or a negative errno), and
 * what else there is to tell. See differential.test.ts for the script.
 *
 * A request that is not answered within a second is told as -ETIME, so that libblkio's hangs are seen and not suffered.
 */
#include <blkio.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { REGION_BYTES = 4 << 20, MAX_SEGMENTS = 512 };

static struct blkio *device;
static struct blkio_mem_region region;

static struct blkioq *queue(void) {
  struct blkioq *q = blkio_get_queue(device, 0);
  return q ? q : blkio_get_poll_queue(device, 0);
}

static void fill(unsigned char *bytes, size_t length, unsigned seed) {
  for (size_t i = 0; i < length; i++) bytes[i] = (unsigned char)((i + seed) * 2654435761u >> 24);
}

static unsigned checksum(const unsigned char *bytes, size_t length) {
  unsigned sum = 2166136261u;
  for (size_t i = 0; i < length; i++) sum = (sum ^ bytes[i]) * 16777619u;
  return sum;
}

/* Waits for the one request that is in flight. */
static int finish(void) {
  struct blkio_completion completion;
  struct timespec limit = {.tv_sec = 1};
  int n = blkioq_do_io(queue(), &completion, 1, 1, &limit);
  return n < 0 ? n : completion.ret;
}

static int segments(struct iovec *iov, char *text, size_t *total) {
  int n = 0;
  *total = 0;
  for (char *word = strtok(text, " "); word && n < MAX_SEGMENTS; word = strtok(NULL, " ")) {
    iov[n].iov_base = (char *)region.addr + *total;
    iov[n].iov_len = strtoull(word, NULL, 10);
    *total += iov[n++].iov_len;
  }
  return n;
}

static void carry_out(char *line) {
  char name[64], value[4096];
  unsigned long long offset, length;
  unsigned seed, flags;
  int used = 0, ret;

  if (sscanf(line, "get %63s", name) == 1) {
    char *text = NULL;
    ret = blkio_get_str(device, name, &text);
    printf("%d%s%s\n", ret, ret == 0 ? " " : "", ret == 0 ? text : "");
    free(text);
  } else if (sscanf(line, "set-int %63s %llu", name, &length) == 2) {
    printf("%d\n", blkio_set_int(device, name, (int)length));
  } else if (sscanf(line, "set-bool %63s %llu", name, &length) == 2) {
    printf("%d\n", blkio_set_bool(device, name, length != 0));
  } else if (sscanf(line, "set %63s %4095s", name, value) == 2) {
    printf("%d\n", blkio_set_str(device, name, value));
  } else if (strcmp(line, "connect") == 0) {
    printf("%d\n", blkio_connect(device));
  } else if (strcmp(line, "start") == 0) {
    printf("%d\n", blkio_start(device));
  } else if (sscanf(line, "alloc %llu", &length) == 1) {
    struct blkio_mem_region other;
    ret = blkio_alloc_mem_region(device, &other, length);
    printf("%d\n", ret);
    if (ret == 0) blkio_free_mem_region(device, &other);
  } else if (strcmp(line, "map") == 0) {
    ret = blkio_alloc_mem_region(device, &region, REGION_BYTES);
    printf("%d\n", ret == 0 ? blkio_map_mem_region(device, &region) : ret);
  } else if (strcmp(line, "map-again") == 0) {
    printf("%d\n", blkio_map_mem_region(device, &region));
  } else if (strcmp(line, "map-overlap") == 0) {
    struct blkio_mem_region other = region;
    other.len = region.len / 2;
    printf("%d\n", blkio_map_mem_region(device, &other));
  } else if (strcmp(line, "unmap-again") == 0) {
    blkio_unmap_mem_region(device, &region);
    blkio_unmap_mem_region(device, &region);
    printf("%d\n", blkio_map_mem_region(device, &region));
  } else if (sscanf(line, "read-unmapped %llu %llu", &offset, &length) == 2) {
    void *memory = aligned_alloc(4096, (length + 4095) / 4096 * 4096);
    blkioq_read(queue(), offset, memory, length, NULL, 0);
    printf("%d\n", finish());
  } else if (sscanf(line, "read %llu %llu %u", &offset, &length, &flags) == 3) {
    memset(region.addr, 0xee, length);
    blkioq_read(queue(), offset, region.addr, length, NULL, flags);
    ret = finish();
    if (ret == 0) printf("0 %u\n", checksum(region.addr, length));
    else printf("%d\n", ret);
  } else if (sscanf(line, "write %llu %llu %u %u", &offset, &length, &seed, &flags) == 4) {
    fill(region.addr, length, seed);
    blkioq_write(queue(), offset, region.addr, length, NULL, flags);
    printf("%d\n", finish());
  } else if (sscanf(line, "readv %llu %u %n", &offset, &flags, &used) == 2) {
    struct iovec iov[MAX_SEGMENTS];
    size_t total;
    int n = segments(iov, line + used, &total);
    blkioq_readv(queue(), offset, iov, n, NULL, flags);
    ret = finish();
    if (ret == 0) printf("0 %u\n", checksum(region.addr, total));
    else printf("%d\n", ret);
  } else if (sscanf(line, "writev %llu %u %u %n", &offset, &seed, &flags, &used) == 3) {
    struct iovec iov[MAX_SEGMENTS];
    size_t total;
    int n = segments(iov, line + used, &total);
    fill(region.addr, total, seed);
    blkioq_writev(queue(), offset, iov, n, NULL, flags);
    printf("%d\n", finish());
  } else if (sscanf(line, "write-zeroes %llu %llu %u", &offset, &length, &flags) == 3) {
    blkioq_write_zeroes(queue(), offset, length, NULL, flags);
    printf("%d\n", finish());
  } else if (sscanf(line, "discard %llu %llu %u", &offset, &length, &flags) == 3) {
    blkioq_discard(queue(), offset, length, NULL, flags);
    printf("%d\n", finish());
  } else if (sscanf(line, "flush %u", &flags) == 1) {
    blkioq_flush(queue(), NULL, flags);
    printf("%d\n", finish());
  } else if (sscanf(line, "completions %llu %llu", &offset, &length) == 2) {
    struct blkio_completion completions[16];
    struct timespec limit = {.tv_nsec = 1000000};
    printf("%d\n", blkioq_do_io(queue(), completions, (int)offset, (int)length, &limit));
  } else {
    printf("unknown: %s\n", line);
  }
  fflush(stdout);
}

int main(int argc, char **argv) {
  char line[8192];
  if (argc != 2) return 2;
  int ret = blkio_create("virtio-blk-vhost-user", &device);
  if (ret == 0) ret = blkio_set_str(device, "path", argv[1]);
  if (ret < 0) return fprintf(stderr, "%d %s\n", ret, blkio_get_error_msg()), 1;
  while (fgets(line, sizeof line, stdin)) {
    line[strcspn(line, "\n")] = 0;
    carry_out(line);
  }
  /* Without destroying the device: what hangs would hang that too. */
  fflush(stdout);
  _exit(0);
}
