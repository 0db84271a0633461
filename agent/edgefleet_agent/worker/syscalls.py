"""Numbers of the system calls that a worker has no business with, for each architecture known."""

from __future__ import annotations

import platform
import struct
from typing import Final, NamedTuple


class Architecture(NamedTuple):
    """What a filter must know: the kernel's audit number, and numbers by name."""

    audit: int
    numbers: dict[str, int]


LAST: Final = 469
"""The newest system call that was looked at; what comes after it does not exist for a worker."""

# name, x86_64, aarch64; '-' where the architecture has it not. Each group has one answer.
NETWORK: Final = """
bind 49 200
connect 42 203
listen 50 201
accept 43 202
accept4 288 242
socketpair 53 199
"""

PROGRAMS: Final = """
execve 59 221
execveat 322 281
ptrace 101 117
process_vm_readv 310 270
process_vm_writev 311 271
bpf 321 280
perf_event_open 298 241
userfaultfd 323 282
io_uring_setup 425 425
io_uring_enter 426 426
io_uring_register 427 427
init_module 175 105
finit_module 313 273
delete_module 176 106
kexec_load 246 104
kexec_file_load 320 294
mount 165 40
umount2 166 39
pivot_root 155 41
chroot 161 51
unshare 272 97
setns 308 268
open_tree 428 428
move_mount 429 429
fsopen 430 430
fsconfig 431 431
fsmount 432 432
fspick 433 433
mount_setattr 442 442
open_tree_attr 467 467
open_by_handle_at 304 265
add_key 248 217
request_key 249 218
keyctl 250 219
reboot 169 142
"""

KERNEL: Final = """
fork 57 -
vfork 58 -
kcmp 312 272
pidfd_open 434 434
pidfd_getfd 438 438
pidfd_send_signal 424 424
process_madvise 440 440
process_mrelease 448 448
tkill 200 130
rt_sigqueueinfo 129 138
rt_tgsigqueueinfo 297 240
setrlimit 160 164
capset 126 91
setuid 105 146
setgid 106 144
setreuid 113 145
setregid 114 143
setgroups 116 159
setresuid 117 147
setresgid 119 149
setfsuid 122 151
setfsgid 123 152
personality 135 92
modify_ldt 154 -
iopl 172 -
ioperm 173 -
uselib 134 -
syslog 103 116
swapon 167 224
swapoff 168 225
sethostname 170 161
setdomainname 171 162
settimeofday 164 170
clock_settime 227 112
adjtimex 159 171
clock_adjtime 305 266
acct 163 89
vhangup 153 58
quotactl 179 60
quotactl_fd 443 443
fanotify_init 300 262
fanotify_mark 301 263
name_to_handle_at 303 264
lookup_dcookie 212 18
migrate_pages 256 238
move_pages 279 239
memfd_secret 447 447
memfd_create 319 279
shmget 29 194
shmat 30 196
shmctl 31 195
shmdt 67 197
semget 64 190
semop 65 193
semctl 66 191
semtimedop 220 192
msgget 68 186
msgsnd 69 189
msgrcv 70 188
msgctl 71 187
mq_open 240 180
mq_unlink 241 181
"""

FILES: Final = """
creat 85 -
truncate 76 45
ftruncate 77 46
fallocate 285 47
rename 82 -
renameat 264 38
renameat2 316 276
mkdir 83 -
mkdirat 258 34
rmdir 84 -
link 86 -
linkat 265 37
unlink 87 -
unlinkat 263 35
symlink 88 -
symlinkat 266 36
mknod 133 -
mknodat 259 33
chmod 90 -
fchmod 91 52
fchmodat 268 53
fchmodat2 452 452
chown 92 -
fchown 93 55
lchown 94 -
fchownat 260 54
utime 132 -
utimes 235 -
futimesat 261 -
utimensat 280 88
setxattr 188 5
lsetxattr 189 6
fsetxattr 190 7
setxattrat 463 463
removexattr 197 14
lremovexattr 198 15
fremovexattr 199 16
removexattrat 466 466
file_setattr 469 469
"""

# Calls whose arguments decide; `seccomp` has a rule for each.
JUDGED: Final = """
open 2 -
openat 257 56
openat2 437 437
clone 56 220
clone3 435 435
socket 41 198
kill 62 129
tgkill 234 131
prctl 157 167
prlimit64 302 261
ioctl 16 29
"""

_AUDIT: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COLUMN: Final = {"x86_64": 1, "aarch64": 2}


def names(table: str) -> list[str]:
    """Return the names of one group."""
    return [line.split()[0] for line in table.split("\n") if line]


def architecture(machine: str = "") -> Architecture | None:
    """Return this machine's numbers, or those of `machine`; None for one that is not known.

    A process of 32 bits on a kernel of 64 has other numbers than the machine's name says.
    """
    wide = bool(machine) or struct.calcsize("P") == 8
    machine = machine or platform.machine()
    if machine not in _AUDIT or not wide:
        return None
    rows = [line.split() for line in (NETWORK + PROGRAMS + KERNEL + FILES + JUDGED).split("\n")]
    column = _COLUMN[machine]
    numbers = {row[0]: int(row[column]) for row in rows if row and row[column] != "-"}
    return Architecture(_AUDIT[machine], numbers)
