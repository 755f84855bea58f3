// Records what the kernel's own headers make of VFIO's ioctls and structures, and of virtio's on PCI, as golden values for the
// tests of src/Wire/VfioIoctl.ts and src/Wire/PciCapability.ts.
//
//     cc -Wall scripts/golden/vfio.c -o /tmp/vfio && /tmp/vfio > test/Wire/golden/vfio-6.1.json
//
// The file is named after the version of the headers (Debian: linux-libc-dev). iommufd is younger than these headers. Values of
// fields are chosen so that no two bytes beside each other are alike, where a field allows it.
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <linux/virtio_pci.h>
#include <stddef.h>
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

#define REQUEST(name) number(#name, VFIO_##name)
#define FIELD(name, field) number(#name, offsetof(struct virtio_pci_common_cfg, field))


int main(void) {
  printf("{\n  \"requests\": {");
  REQUEST(GET_API_VERSION);
  REQUEST(CHECK_EXTENSION);
  REQUEST(SET_IOMMU);
  REQUEST(GROUP_GET_STATUS);
  REQUEST(GROUP_SET_CONTAINER);
  REQUEST(GROUP_GET_DEVICE_FD);
  REQUEST(DEVICE_GET_INFO);
  REQUEST(DEVICE_GET_REGION_INFO);
  REQUEST(DEVICE_GET_IRQ_INFO);
  REQUEST(DEVICE_SET_IRQS);
  REQUEST(DEVICE_RESET);
  REQUEST(IOMMU_GET_INFO);
  REQUEST(IOMMU_MAP_DMA);
  REQUEST(IOMMU_UNMAP_DMA);

  separator = "";
  printf("\n  },\n  \"constants\": {");
  number("API_VERSION", VFIO_API_VERSION);
  number("TYPE1V2_IOMMU", VFIO_TYPE1v2_IOMMU);
  number("CONFIG_REGION", VFIO_PCI_CONFIG_REGION_INDEX);
  number("INTX", VFIO_PCI_INTX_IRQ_INDEX);
  number("MSIX", VFIO_PCI_MSIX_IRQ_INDEX);
  number("ERR", VFIO_PCI_ERR_IRQ_INDEX);
  number("REQ", VFIO_PCI_REQ_IRQ_INDEX);
  number("COMMAND", PCI_COMMAND);
  number("MEMORY", PCI_COMMAND_MEMORY);
  number("BUS_MASTER", PCI_COMMAND_MASTER);
  number("INTX_DISABLE", PCI_COMMAND_INTX_DISABLE);

  separator = "";
  printf("\n  },\n  \"structures\": {");
  struct vfio_group_status status = {.argsz = sizeof(status), .flags = VFIO_GROUP_FLAGS_VIABLE};
  bytes("vfio_group_status", &status, sizeof(status));
  struct vfio_device_info device = {
    .argsz = 16, .flags = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET, .num_regions = 9, .num_irqs = 5};
  bytes("vfio_device_info", &device, offsetof(struct vfio_device_info, cap_offset));
  struct {
    struct vfio_region_info info;
    struct vfio_info_cap_header mappable;
    struct vfio_region_info_cap_sparse_mmap sparse;
    struct vfio_region_sparse_mmap_area areas[2];
  } region = {
    .info = {
      .argsz = sizeof(region), .flags = VFIO_REGION_INFO_FLAG_MMAP | VFIO_REGION_INFO_FLAG_CAPS, .index = 4,
      .cap_offset = sizeof(region.info), .size = 0x10000, .offset = 0x40000000000},
    .mappable = {.id = VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, .version = 1, .next = sizeof(region.info) + sizeof(region.mappable)},
    .sparse = {.header = {.id = VFIO_REGION_INFO_CAP_SPARSE_MMAP, .version = 1}, .nr_areas = 2},
    .areas = {{.offset = 0, .size = 0x1000}, {.offset = 0x3000, .size = 0xd000}}};
  bytes("vfio_region_info", &region, sizeof(region));
  struct vfio_irq_info irq = {
    .argsz = sizeof(irq), .flags = VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_NORESIZE, .index = VFIO_PCI_MSIX_IRQ_INDEX, .count = 5};
  bytes("vfio_irq_info", &irq, sizeof(irq));
  struct {
    struct vfio_irq_set set;
    int fds[2];
  } events = {
    .set = {
      .argsz = sizeof(events), .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
      .index = VFIO_PCI_MSIX_IRQ_INDEX, .count = 2},
    .fds = {7, 0x102}};
  bytes("vfio_irq_set events", &events, sizeof(events));
  struct vfio_irq_set disable = {
    .argsz = sizeof(disable), .flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, .index = VFIO_PCI_MSIX_IRQ_INDEX};
  bytes("vfio_irq_set disable", &disable, sizeof(disable));
  struct vfio_irq_set unmask = {
    .argsz = sizeof(unmask), .flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK,
    .index = VFIO_PCI_INTX_IRQ_INDEX, .count = 1};
  bytes("vfio_irq_set unmask", &unmask, sizeof(unmask));
  struct {
    struct vfio_iommu_type1_info info;
    struct vfio_iommu_type1_info_dma_avail available;
    __u32 unused;
    struct vfio_iommu_type1_info_cap_iova_range ranges;
    struct vfio_iova_range list[2];
  } iommu = {
    .info = {
      .argsz = sizeof(iommu), .flags = VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS, .iova_pgsizes = 0x40201000,
      .cap_offset = offsetof(typeof(iommu), available)},
    .available = {
      .header = {.id = VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, .version = 1, .next = offsetof(typeof(iommu), ranges)},
      .avail = 65535},
    .ranges = {.header = {.id = VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, .version = 1}, .nr_iovas = 2},
    .list = {{.start = 0, .end = 0xfedfffff}, {.start = 0xfef00000, .end = 0x7fffffffff}}};
  bytes("vfio_iommu_type1_info", &iommu, sizeof(iommu));
  struct vfio_iommu_type1_dma_map map = {
    .argsz = sizeof(map), .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE, .vaddr = 0x7020304050607000ull,
    .iova = 0x10203040506000ull, .size = 0x1020304050000ull};
  bytes("vfio_iommu_type1_dma_map", &map, sizeof(map));
  struct vfio_iommu_type1_dma_unmap unmap = {
    .argsz = sizeof(unmap), .iova = 0x10203040506000ull, .size = 0x1020304050000ull};
  bytes("vfio_iommu_type1_dma_unmap", &unmap, sizeof(unmap));

  struct virtio_pci_notify_cap notify = {
    .cap = {
      .cap_vndr = PCI_CAP_ID_VNDR, .cap_next = 0x60, .cap_len = sizeof(notify), .cfg_type = VIRTIO_PCI_CAP_NOTIFY_CFG,
      .bar = 4, .offset = 0x3040, .length = 0x1020},
    .notify_off_multiplier = 0x10204};
  bytes("virtio_pci_notify_cap", &notify, sizeof(notify));
  struct virtio_pci_cap cap = {
    .cap_vndr = PCI_CAP_ID_VNDR, .cap_len = sizeof(cap), .cfg_type = VIRTIO_PCI_CAP_DEVICE_CFG, .bar = 4, .offset = 0x2040,
    .length = 0x1030};
  bytes("virtio_pci_cap", &cap, sizeof(cap));

  separator = "";
  printf("\n  },\n  \"common\": {");
  FIELD(DEVICE_FEATURE_SELECT, device_feature_select);
  FIELD(DEVICE_FEATURE, device_feature);
  FIELD(DRIVER_FEATURE_SELECT, guest_feature_select);
  FIELD(DRIVER_FEATURE, guest_feature);
  FIELD(CONFIG_MSIX_VECTOR, msix_config);
  FIELD(NUM_QUEUES, num_queues);
  FIELD(DEVICE_STATUS, device_status);
  FIELD(CONFIG_GENERATION, config_generation);
  FIELD(QUEUE_SELECT, queue_select);
  FIELD(QUEUE_SIZE, queue_size);
  FIELD(QUEUE_MSIX_VECTOR, queue_msix_vector);
  FIELD(QUEUE_ENABLE, queue_enable);
  FIELD(QUEUE_NOTIFY_OFF, queue_notify_off);
  FIELD(QUEUE_DESC_LOW, queue_desc_lo);
  FIELD(QUEUE_DESC_HIGH, queue_desc_hi);
  FIELD(QUEUE_DRIVER_LOW, queue_avail_lo);
  FIELD(QUEUE_DRIVER_HIGH, queue_avail_hi);
  FIELD(QUEUE_DEVICE_LOW, queue_used_lo);
  FIELD(QUEUE_DEVICE_HIGH, queue_used_hi);
  printf("\n  }\n}\n");
  return 0;
}
