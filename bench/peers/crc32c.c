// What a log costs at least: CRC-32C of the bytes, in three lanes, and write().
#include <fcntl.h>
#include <nmmintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

uint32_t checksum(const unsigned char *bytes, size_t n) {
    uint64_t lane[3] = {~0u, ~0u, ~0u};
    size_t third = n / 24 * 8;
    for (size_t at = 0; at < third; at += 8) {
        for (int i = 0; i < 3; i++) {
            uint64_t word;
            memcpy(&word, bytes + i * third + at, 8);
            lane[i] = _mm_crc32_u64(lane[i], word);
        }
    }
    for (size_t at = 3 * third; at < n; at++) lane[0] = _mm_crc32_u8(lane[0], bytes[at]);
    return lane[0] ^ lane[1] ^ lane[2];
}

// The checksum of the bytes, and the bytes over what a file holds at an offset; 0 if all went well.
int append(int file, const unsigned char *bytes, size_t n, off_t at) {
    uint32_t sum = checksum(bytes, n);
    return pwrite(file, &sum, 4, at) == 4 && pwrite(file, bytes, n, at + 4) == (ssize_t)n ? 0 : -1;
}

// The checksum of a whole file, mapped; 0 if it cannot be read.
uint32_t scan(const char *path) {
    struct stat status;
    int file = open(path, O_RDONLY);
    if (file < 0 || fstat(file, &status) != 0) return 0;
    void *bytes = mmap(NULL, status.st_size, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (bytes == MAP_FAILED) return 0;
    uint32_t sum = checksum(bytes, status.st_size);
    munmap(bytes, status.st_size);
    return sum | 1;
}
