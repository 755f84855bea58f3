// Records what the kernel's own headers make of the vhost-vdpa ioctls and structures, as golden values for the tests of
// src/Wire/VhostIoctl.ts.
//
//     cc -Wall scripts/golden/vhost.c -o /tmp/vhost && /tmp/vhost > test/Wire/golden/vhost-6.1.json
//
// The file is named after the version of the headers (Debian: linux-libc-dev). What older headers lack is left out. Values
// of fields are chosen so that no two bytes beside each other are alike, where a field allows it.
#include <linux/vhost.h>
#include <stdio.h>
#include <string.h>

static const char *separator = "";

static void number(const char *name, unsigned long value) {
  printf("%s\n    \"%s\": %lu", separator, name, value);
  separator = ",";
}

static void bytes(const char *name, const void *value, size_t size) {
  printf("%s\n    \"%s\": \"", separator, name);
  for (size_t i = 0; i < size; i++) printf("%02x", ((const unsigned char *)value)[i]);
  printf("\"");
  separator = ",";
}

#define IOCTL(name) number(#name, name)

int main(void) {
  printf("{\n  \"ioctls\": {");
  IOCTL(VHOST_GET_FEATURES);
  IOCTL(VHOST_SET_FEATURES);
  IOCTL(VHOST_SET_OWNER);
  IOCTL(VHOST_SET_VRING_NUM);
  IOCTL(VHOST_SET_VRING_ADDR);
  IOCTL(VHOST_SET_VRING_BASE);
  IOCTL(VHOST_GET_VRING_BASE);
  IOCTL(VHOST_SET_VRING_KICK);
  IOCTL(VHOST_SET_VRING_CALL);
  IOCTL(VHOST_SET_VRING_ERR);
  IOCTL(VHOST_SET_BACKEND_FEATURES);
  IOCTL(VHOST_GET_BACKEND_FEATURES);
  IOCTL(VHOST_VDPA_GET_DEVICE_ID);
  IOCTL(VHOST_VDPA_GET_STATUS);
  IOCTL(VHOST_VDPA_SET_STATUS);
  IOCTL(VHOST_VDPA_GET_CONFIG);
  IOCTL(VHOST_VDPA_SET_CONFIG);
  IOCTL(VHOST_VDPA_SET_VRING_ENABLE);
  IOCTL(VHOST_VDPA_GET_VRING_NUM);
  IOCTL(VHOST_VDPA_SET_CONFIG_CALL);
  IOCTL(VHOST_VDPA_GET_IOVA_RANGE);
  IOCTL(VHOST_VDPA_GET_CONFIG_SIZE);
  IOCTL(VHOST_VDPA_GET_AS_NUM);
  IOCTL(VHOST_VDPA_GET_VRING_GROUP);
  IOCTL(VHOST_VDPA_SET_GROUP_ASID);
  IOCTL(VHOST_VDPA_SUSPEND);
#ifdef VHOST_VDPA_RESUME
  IOCTL(VHOST_VDPA_RESUME);
#endif
#ifdef VHOST_VDPA_GET_VRING_DESC_GROUP
  IOCTL(VHOST_VDPA_GET_VRING_DESC_GROUP);
#endif
  IOCTL(VHOST_VDPA_GET_VQS_COUNT);
  IOCTL(VHOST_VDPA_GET_GROUP_NUM);
#ifdef VHOST_VDPA_GET_VRING_SIZE
  IOCTL(VHOST_VDPA_GET_VRING_SIZE);
#endif

  separator = "";
  printf("\n  },\n  \"structures\": {");
  struct vhost_vring_state state = {.index = 3, .num = 0x102};
  bytes("vhost_vring_state", &state, sizeof state);
  struct vhost_vring_file file = {.index = 3, .fd = -1};
  bytes("vhost_vring_file", &file, sizeof file);
  struct vhost_vring_addr address = {
      .index = 3,
      .desc_user_addr = 0x1020304050600,
      .used_user_addr = 0x1020304050700,
      .avail_user_addr = 0x1020304050800,
  };
  bytes("vhost_vring_addr", &address, sizeof address);
  struct vhost_vdpa_config config = {.off = 0, .len = 0x60};
  bytes("vhost_vdpa_config", &config, sizeof config);
  struct vhost_vdpa_iova_range range = {.first = 0x0102030405060708, .last = 0xf1f2f3f4f5f6f7f8};
  bytes("vhost_vdpa_iova_range", &range, sizeof range);

  struct vhost_iotlb_msg update = {
      .iova = 0x1020304050000,
      .size = 0x203000,
      .uaddr = 0x1112131415000,
      .perm = VHOST_ACCESS_RW,
      .type = VHOST_IOTLB_UPDATE,
  };
  struct vhost_iotlb_msg invalidate = {.iova = 0x1020304050000, .size = 0x203000, .type = VHOST_IOTLB_INVALIDATE};
  struct vhost_msg old;
  memset(&old, 0, sizeof old);
  old.type = VHOST_IOTLB_MSG;
  old.iotlb = update;
  bytes("vhost_msg update", &old, sizeof old);
  old.iotlb = invalidate;
  bytes("vhost_msg invalidate", &old, sizeof old);
  struct vhost_msg_v2 current;
  memset(&current, 0, sizeof current);
  current.type = VHOST_IOTLB_MSG_V2;
  current.iotlb = update;
  bytes("vhost_msg_v2 update", &current, sizeof current);
  current.iotlb = invalidate;
  bytes("vhost_msg_v2 invalidate", &current, sizeof current);
  memset(&current.iotlb, 0, sizeof current.iotlb);
  current.iotlb.type = VHOST_IOTLB_BATCH_BEGIN;
  bytes("vhost_msg_v2 batch begin", &current, sizeof current);
  current.iotlb.type = VHOST_IOTLB_BATCH_END;
  bytes("vhost_msg_v2 batch end", &current, sizeof current);
  printf("\n  }\n}\n");
  return 0;
}
