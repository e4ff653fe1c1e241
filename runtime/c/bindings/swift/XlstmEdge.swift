// Stream xLSTM bundles in Swift: a thin layer over xlstm_edge.h, which says what each call does.
//
//     let model = try XlstmEdge(folder: path)
//     let session = try model.session()
//     var logits = try session.prefill([5, 17, 3])
import CXlstmEdge

/// One sentence: what was expected, what was got, what to do.
public struct XlstmEdgeError: Error {
    public let code: Int32
    public let message: String
}

private func check(_ code: Int32) throws {
    if code != 0 { throw XlstmEdgeError(code: code, message: String(cString: xe_error())) }
}

/// A bundle, its weights loaded once. It lives as long as any of its sessions.
public final class XlstmEdge {
    fileprivate let model: OpaquePointer

    public init(folder: String, threads: Int32 = 0) throws {
        var options = xe_options(onnxruntime: nil, threads: threads, spin: 0, hash_all: 0)
        var made: OpaquePointer?
        try check(xe_load(folder, &options, &made))
        model = made!
    }

    deinit { xe_free_model(model) }

    public func session() throws -> Session {
        var made: OpaquePointer?
        try check(xe_session(model, &made))
        return Session(owner: self, session: made!)
    }
}

/// A stream of its own, for one thread at a time.
public final class Session {
    private let owner: XlstmEdge
    private let session: OpaquePointer

    fileprivate init(owner: XlstmEdge, session: OpaquePointer) {
        self.owner = owner
        self.session = session
    }

    deinit { xe_free_session(session) }

    /// Logits after the last id.
    public func prefill(_ ids: [Int64]) throws -> [Float] {
        var logits: UnsafePointer<Float>?
        try check(xe_prefill(session, ids, ids.count, &logits))
        return Array(UnsafeBufferPointer(start: logits, count: Int(xe_vocab_size(owner.model))))
    }

    public func step(_ id: Int64) throws -> [Float] { try prefill([id]) }

    public func fork() throws -> Session {
        var made: OpaquePointer?
        try check(xe_fork(session, &made))
        return Session(owner: owner, session: made!)
    }

    public func save(_ path: String) throws { try check(xe_save(session, path)) }

    public func restore(_ path: String) throws { try check(xe_restore(session, path)) }

    public var tokens: UInt64 { xe_tokens(session) }
}
