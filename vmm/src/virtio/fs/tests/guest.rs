//! A FUSE client over the test driver: what the guest's kernel would send, built by hand.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use vm_memory::ByteValued;

use crate::virtio::VirtioDevice;
use crate::virtio::fs::Fs;
use crate::virtio::fs::fuse::{
    AttrOut, CreateIn, Dirent, EntryOut, GetxattrIn, InHeader, InitIn, InitOut, LinkIn, MkdirIn,
    MknodIn, OpenIn, OpenOut, OutHeader, ROOT_ID, ReadIn, ReleaseIn, Rename2In, SetattrIn,
    SetxattrIn, WriteIn, WriteOut, opcode,
};
use crate::virtio::fs::server::DescriptorLimits;
use crate::virtio::fs::spec;
use crate::virtio::guest_driver::GuestDriver;

/// Space for replies, as the largest READ needs.
const ROOM: usize = 64 << 10;
/// What Linux 6.12 offers at FUSE_INIT, less what needs DAX or passthrough.
pub(super) const OFFERED: u64 = 0x0000_01d7_7fff_ffff & !(1 << 26) & !(1 << 33) & !(1 << 37);

/// Result of an operation: the reply's body, or the positive error number.
pub(super) type Reply<T> = Result<T, i32>;

/// A directory entry as READDIR gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) off: u64,
    pub(super) kind: u32,
    /// Only from READDIRPLUS.
    pub(super) entry: Option<EntryOut>,
}

pub(super) struct Guest {
    pub(super) fs: Fs,
    pub(super) driver: GuestDriver,
    /// Who asks.
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) umask: u32,
    /// Where [`Guest::call`] puts requests.
    requests: usize,
    unique: u64,
}

pub(super) fn open_root(path: &Path) -> OwnedFd {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(path)
        .unwrap()
        .into()
}

/// Tests act as different users and mount file systems.
pub(super) fn require_root() {
    // SAFETY: geteuid has no preconditions.
    let uid = unsafe { libc::geteuid() };
    assert_eq!(
        uid, 0,
        "the tests of the file system device must run as root"
    );
}

/// A tmpfs at a path, unmounted at the end.
pub(super) struct Mounted(PathBuf);

impl Mounted {
    pub(super) fn tmpfs(at: &Path) -> Self {
        require_root();
        let target = CString::new(at.to_str().unwrap()).unwrap();
        // SAFETY: all texts are NUL-terminated.
        let result = unsafe {
            libc::mount(
                c"tmpfs".as_ptr(),
                target.as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                std::ptr::null(),
            )
        };
        assert_eq!(
            result,
            0,
            "mounting a tmpfs for this test failed (it needs CAP_SYS_ADMIN): {}",
            std::io::Error::last_os_error()
        );
        Self(at.into())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let target = CString::new(self.0.to_str().unwrap()).unwrap();
        // SAFETY: the text is NUL-terminated.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}

pub(super) fn bytes_of<T: ByteValued>(value: &T) -> Vec<u8> {
    value.as_slice().to_vec()
}

pub(super) fn value<T: ByteValued + Default>(bytes: &[u8]) -> T {
    let mut value = T::default();
    let len = size_of::<T>();
    value.as_mut_slice().copy_from_slice(&bytes[..len]);
    value
}

pub(super) fn text(name: &str) -> Vec<u8> {
    CString::new(name).unwrap().into_bytes_with_nul()
}

impl Guest {
    /// A started device over `path` with two request queues, after FUSE_INIT.
    pub(super) fn new(path: &Path) -> Self {
        Self::with(path, false)
    }

    pub(super) fn with(path: &Path, read_only: bool) -> Self {
        let mut guest = Self::before_init(path, read_only);
        guest.init(OFFERED).unwrap();
        guest
    }

    pub(super) fn before_init(path: &Path, read_only: bool) -> Self {
        require_root();
        Self::over(Fs::new("fs0".into(), "share", open_root(path), 2, read_only).unwrap())
    }

    /// A started device after FUSE_INIT that holds this many inodes open before it uses handles, or refuses.
    pub(super) fn with_descriptors(path: &Path, handles_from: usize, refuse_from: usize) -> Self {
        require_root();
        let limits = DescriptorLimits {
            handles_from,
            refuse_from,
        };
        let root = open_root(path);
        let fs = Fs::with_limits("fs0".into(), "share", root, 2, false, limits).unwrap();
        let mut guest = Self::over(fs);
        guest.init(OFFERED).unwrap();
        guest
    }

    /// A started device with a notification queue, as number 1, after FUSE_INIT.
    pub(super) fn notified(path: &Path) -> Self {
        require_root();
        let fs = Fs::new("fs0".into(), "share", open_root(path), 2, false).unwrap();
        let mut guest = Self::agreed(fs, spec::FEATURE_NOTIFICATION);
        guest.init(OFFERED).unwrap();
        guest
    }

    fn over(fs: Fs) -> Self {
        Self::agreed(fs, 0)
    }

    fn agreed(mut fs: Fs, notification: u64) -> Self {
        let features = fs.features() & !spec::FEATURE_NOTIFICATION | notification;
        let requests = usize::from(spec::first_request_queue(features));
        let driver = GuestDriver::new(requests + 2, 256);
        driver.activate(&mut fs, features);
        Self {
            requests,
            fs,
            driver,
            uid: 0,
            gid: 0,
            umask: 0o022,
            unique: 0,
        }
    }

    /// The bytes of a request.
    pub(super) fn header(&mut self, op: u32, node: u64, body: usize) -> InHeader {
        self.unique += 1;
        InHeader {
            len: (size_of::<InHeader>() + body) as u32,
            opcode: op,
            unique: self.unique,
            nodeid: node,
            uid: self.uid,
            gid: self.gid,
            pid: 1,
            ..InHeader::default()
        }
    }

    /// Sends a request and checks the frame of the reply.
    pub(super) fn call(&mut self, op: u32, node: u64, body: &[&[u8]]) -> Reply<Vec<u8>> {
        self.call_on(self.requests, op, node, body, ROOM)
    }

    pub(super) fn call_on(
        &mut self,
        queue: usize,
        op: u32,
        node: u64,
        body: &[&[u8]],
        room: usize,
    ) -> Reply<Vec<u8>> {
        let header = self.header(op, node, body.iter().map(|b| b.len()).sum());
        let head = bytes_of(&header);
        let mut parts = vec![head.as_slice()];
        parts.extend(body.iter().filter(|b| !b.is_empty()));
        let reply = self.driver.request(queue, &parts, &[16, room]);
        let out: OutHeader = value(&reply);
        assert_eq!(out.unique, header.unique);
        assert_eq!(out.len as usize, reply.len());
        if out.error == 0 {
            Ok(reply[16..].to_vec())
        } else {
            assert_eq!(reply.len(), 16);
            Err(-out.error)
        }
    }

    pub(super) fn init(&mut self, offered: u64) -> Reply<InitOut> {
        let init = InitIn {
            major: 7,
            minor: 41,
            max_readahead: 128 << 10,
            flags: offered as u32,
            flags2: (offered >> 32) as u32,
            unused: [0; 11],
        };
        self.call(opcode::INIT, 0, &[init.as_slice()])
            .map(|b| value(&b))
    }

    pub(super) fn lookup(&mut self, parent: u64, name: &str) -> Reply<EntryOut> {
        self.call(opcode::LOOKUP, parent, &[&text(name)])
            .map(|b| value(&b))
    }

    /// Looks up each component from the root.
    pub(super) fn walk(&mut self, path: &str) -> EntryOut {
        let mut node = ROOT_ID;
        let mut entry = EntryOut::default();
        for name in path.split('/') {
            entry = self.lookup(node, name).unwrap();
            node = entry.nodeid;
        }
        entry
    }

    pub(super) fn forget(&mut self, node: u64, count: u64) {
        let header = self.header(opcode::FORGET, node, 8);
        let chain = self
            .driver
            .put(0, &[header.as_slice(), &count.to_le_bytes()], &[]);
        self.driver.kick(0);
        let used = self.driver.wait_used(0, std::time::Duration::from_secs(10));
        assert!(self.driver.written(&chain, &used).is_empty());
    }

    pub(super) fn getattr(&mut self, node: u64) -> Reply<AttrOut> {
        self.call(opcode::GETATTR, node, &[&[0; 16]])
            .map(|b| value(&b))
    }

    pub(super) fn setattr(&mut self, node: u64, set: SetattrIn) -> Reply<AttrOut> {
        self.call(opcode::SETATTR, node, &[set.as_slice()])
            .map(|b| value(&b))
    }

    pub(super) fn open(&mut self, node: u64, flags: i32) -> Reply<OpenOut> {
        let open = OpenIn {
            flags: flags as u32,
            open_flags: 0,
        };
        self.call(opcode::OPEN, node, &[open.as_slice()])
            .map(|b| value(&b))
    }

    pub(super) fn opendir(&mut self, node: u64) -> Reply<OpenOut> {
        self.call(opcode::OPENDIR, node, &[&[0; 8]])
            .map(|b| value(&b))
    }

    pub(super) fn release(&mut self, node: u64, fh: u64) -> Reply<()> {
        let release = ReleaseIn {
            fh,
            ..ReleaseIn::default()
        };
        self.call(opcode::RELEASE, node, &[release.as_slice()])
            .map(drop)
    }

    pub(super) fn read(&mut self, fh: u64, offset: u64, size: u32) -> Reply<Vec<u8>> {
        let read = ReadIn {
            fh,
            offset,
            size,
            ..ReadIn::default()
        };
        self.call(opcode::READ, ROOT_ID, &[read.as_slice()])
    }

    pub(super) fn write(&mut self, fh: u64, offset: u64, data: &[u8]) -> Reply<u32> {
        self.write_with(fh, offset, data, 0, 0)
    }

    pub(super) fn write_with(
        &mut self,
        fh: u64,
        offset: u64,
        data: &[u8],
        flags: i32,
        write_flags: u32,
    ) -> Reply<u32> {
        let write = WriteIn {
            fh,
            offset,
            size: data.len() as u32,
            write_flags,
            flags: flags as u32,
            ..WriteIn::default()
        };
        self.call(opcode::WRITE, ROOT_ID, &[write.as_slice(), data])
            .map(|b| value::<WriteOut>(&b).size)
    }

    pub(super) fn create(
        &mut self,
        parent: u64,
        name: &str,
        mode: u32,
        flags: i32,
    ) -> Reply<(EntryOut, OpenOut)> {
        let create = CreateIn {
            flags: flags as u32,
            mode: libc::S_IFREG | mode,
            umask: self.umask,
            open_flags: 0,
        };
        self.call(opcode::CREATE, parent, &[create.as_slice(), &text(name)])
            .map(|b| (value(&b), value(&b[size_of::<EntryOut>()..])))
    }

    pub(super) fn tmpfile(
        &mut self,
        parent: u64,
        mode: u32,
        flags: i32,
    ) -> Reply<(EntryOut, OpenOut)> {
        let create = CreateIn {
            flags: flags as u32,
            mode: libc::S_IFREG | mode,
            umask: self.umask,
            open_flags: 0,
        };
        self.call(opcode::TMPFILE, parent, &[create.as_slice(), &text("/")])
            .map(|b| (value(&b), value(&b[size_of::<EntryOut>()..])))
    }

    pub(super) fn mkdir(&mut self, parent: u64, name: &str, mode: u32) -> Reply<EntryOut> {
        let mkdir = MkdirIn {
            mode,
            umask: self.umask,
        };
        self.call(opcode::MKDIR, parent, &[mkdir.as_slice(), &text(name)])
            .map(|b| value(&b))
    }

    pub(super) fn mknod(
        &mut self,
        parent: u64,
        name: &str,
        mode: u32,
        rdev: u32,
    ) -> Reply<EntryOut> {
        let mknod = MknodIn {
            mode,
            rdev,
            umask: self.umask,
            padding: 0,
        };
        self.call(opcode::MKNOD, parent, &[mknod.as_slice(), &text(name)])
            .map(|b| value(&b))
    }

    pub(super) fn symlink(&mut self, parent: u64, name: &str, target: &str) -> Reply<EntryOut> {
        self.call(opcode::SYMLINK, parent, &[&text(name), &text(target)])
            .map(|b| value(&b))
    }

    pub(super) fn link(&mut self, node: u64, parent: u64, name: &str) -> Reply<EntryOut> {
        let link = LinkIn { oldnodeid: node };
        self.call(opcode::LINK, parent, &[link.as_slice(), &text(name)])
            .map(|b| value(&b))
    }

    pub(super) fn unlink(&mut self, parent: u64, name: &str) -> Reply<()> {
        self.call(opcode::UNLINK, parent, &[&text(name)]).map(drop)
    }

    pub(super) fn rmdir(&mut self, parent: u64, name: &str) -> Reply<()> {
        self.call(opcode::RMDIR, parent, &[&text(name)]).map(drop)
    }

    pub(super) fn rename(&mut self, from: (u64, &str), to: (u64, &str), flags: u32) -> Reply<()> {
        let rename = Rename2In {
            newdir: to.0,
            flags,
            padding: 0,
        };
        let names = [rename.as_slice(), &text(from.1), &text(to.1)].concat();
        self.call(opcode::RENAME2, from.0, &[&names]).map(drop)
    }

    pub(super) fn readlink(&mut self, node: u64) -> Reply<String> {
        self.call(opcode::READLINK, node, &[])
            .map(|b| String::from_utf8(b).unwrap())
    }

    pub(super) fn setxattr(&mut self, node: u64, name: &str, data: &[u8]) -> Reply<()> {
        let set = SetxattrIn {
            size: data.len() as u32,
            ..SetxattrIn::default()
        };
        self.call(opcode::SETXATTR, node, &[set.as_slice(), &text(name), data])
            .map(drop)
    }

    pub(super) fn getxattr(&mut self, node: u64, name: &str, size: u32) -> Reply<Vec<u8>> {
        let get = GetxattrIn { size, padding: 0 };
        self.call(opcode::GETXATTR, node, &[get.as_slice(), &text(name)])
    }

    /// One READDIR or READDIRPLUS.
    pub(super) fn readdir(
        &mut self,
        node: u64,
        fh: u64,
        offset: u64,
        size: u32,
        plus: bool,
    ) -> Reply<Vec<Listed>> {
        let read = ReadIn {
            fh,
            offset,
            size,
            ..ReadIn::default()
        };
        let op = if plus {
            opcode::READDIRPLUS
        } else {
            opcode::READDIR
        };
        let bytes = self.call(op, node, &[read.as_slice()])?;
        assert!(bytes.len() <= size as usize);
        let mut listed = Vec::new();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let fixed = if plus { size_of::<EntryOut>() } else { 0 };
            let dirent: Dirent = value(&rest[fixed..]);
            let start = fixed + size_of::<Dirent>();
            let end = start + dirent.namelen as usize;
            listed.push(Listed {
                name: String::from_utf8(rest[start..end].to_vec()).unwrap(),
                off: dirent.off,
                kind: dirent.kind,
                entry: plus.then(|| value(rest)),
            });
            rest = &rest[end.next_multiple_of(8)..];
        }
        Ok(listed)
    }

    /// The whole listing of a directory, in pieces of `size` bytes.
    pub(super) fn list(&mut self, node: u64, size: u32, plus: bool) -> Vec<Listed> {
        let fh = self.opendir(node).unwrap().fh;
        let mut all: Vec<Listed> = Vec::new();
        loop {
            let offset = all.last().map_or(0, |l| l.off);
            let some = self.readdir(node, fh, offset, size, plus).unwrap();
            if some.is_empty() {
                break;
            }
            all.extend(some);
        }
        self.release(node, fh).unwrap();
        all
    }

    /// The contents of a file, through an open of its own.
    pub(super) fn contents(&mut self, node: u64) -> Vec<u8> {
        let fh = self.open(node, libc::O_RDONLY).unwrap().fh;
        let data = self.read(fh, 0, 60_000).unwrap();
        self.release(node, fh).unwrap();
        data
    }
}
