public import ArgumentParser
public import Storage
public import VfioUser
public import VhostUserBackend
public import Virtio
public import VirtioServing

// What a library's enumeration has for cases is what the option of the command takes.
extension AccessPlatformPolicy: ExpressibleByArgument {}
extension IndirectPolicy: ExpressibleByArgument {}
extension TranslationPolicy: ExpressibleByArgument {}
extension DiskEngine: ExpressibleByArgument {}
extension DoorbellPolicy: ExpressibleByArgument {}
extension DiskLock: ExpressibleByArgument {}
extension OnOffAuto: ExpressibleByArgument {}
